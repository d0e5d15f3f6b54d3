/** `sol`: asks the bundle's policy, and charges its logits for cost so that the budget is held. */
import { leastAllowed } from "../controller.js";
import { Multiplier } from "../multiplier.js";
import { PolicyInputs } from "../policy_inputs.js";

/** @import {PolicySession} from "../../engine/policy_session.js" */
/** @import {AxisController, Controller} from "../controller.js" */
/** @import {DeferredPolicy, StepInput} from "./schedule.js" */

/** Takes the allowed action with the largest value of logits - multiplier * relative cost. */
export class SolSchedule {
  name = "sol";
  #multiplier = new Multiplier();
  /** @type {PolicySession | null} */
  #session = null;
  /** The step at which the row of steps with the policy began, and the row's next. */
  #first = 0;
  #next = 0;

  /**
   * @param {Controller | AxisController} controller
   * @param {DeferredPolicy} policy
   */
  constructor(controller, policy) {
    this.controller = controller;
    this.policy = policy;
    this.inputs = this.#freshInputs();
  }

  #freshInputs() {
    return new PolicyInputs(this.policy.spec.scalars, this.policy.spec.horizon);
  }

  /** @param {StepInput} step */
  async choose({ context, token, hidden, distribution, step }) {
    const { controller } = this;
    if (controller.denseOnly) return controller.dense;
    if (this.#session === null || step !== this.#next) {
      this.#session = await this.policy.open();
      this.#session.reset(); // not when the schedule is made: another run may be using the policy then
      this.inputs = this.#freshInputs();
      this.#first = step;
    }
    this.#next = step + 1;
    const { inputs } = this;
    const budget = controller.budget ?? controller.requested ?? 1;
    const scalars = inputs.at(step - this.#first, { context, token, distribution, budget });
    const values = await this.#session.decide(hidden, token, scalars, inputs.previous, inputs.position);
    const costs = controller.relativeCosts(context);
    const count = values.length;
    if (controller.axisTargets === null) {
      const multiplier = this.#multiplier.at([...values], costs.slice(0, count), controller.target(context));
      for (let i = 0; i < count; i++) values[i] -= multiplier * costs[i];
    }
    if (count < costs.length) values.push(-1e9); // the dense action, unknown to the policy
    const all = values.map(() => true);
    const lowered = values.map((value) => -value);
    let index = leastAllowed(lowered, all);
    if (!controller.allows(index, context)) index = leastAllowed(lowered, controller.allowed(context));
    inputs.record(index < count ? index : -1, costs[index]);
    return controller.actions[index];
  }
}
