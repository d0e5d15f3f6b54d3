/** Interface of a schedule, the names by which callers know schedules, and their construction. */
import { UsageError, brief } from "../../errors.js";
import { Action } from "../actions.js";
import { Controller } from "../controller.js";
import { HullSchedule } from "./hull.js";
import { RandomSchedule } from "./random.js";
import { SolSchedule } from "./sol.js";
import { EntropySchedule, UniformSchedule } from "./uniform.js";

/** @import {PolicySpec, SolConfig} from "../../bundle/config.js" */
/** @import {Distribution} from "../../engine/distribution.js" */
/** @import {PolicySession} from "../../engine/policy_session.js" */
/** @import {AxisController, AxisTargets} from "../controller.js" */
/** @import {Hull} from "../hull.js" */

export const NAMES = ["sol", "hull", "uniform", "entropy", "random", "fixed:TAG", "dense"];

/**
 * Facts that a schedule gets before a decode step: tokens in the cache, the token that the step is to process, the
 * hidden state [hidden] and the distribution from which that token was picked, and decode steps of the run before this
 * one.
 * @typedef {{context: number, token: number, hidden: Float32Array, distribution: Distribution, step: number}} StepInput
 */

/**
 * The bundle's policy, whose session is made when it is first asked.
 * @typedef {{spec: PolicySpec, open(): Promise<PolicySession>}} DeferredPolicy
 */

/**
 * Picks the action of each decode step.
 * @typedef {{name: string, choose(step: StepInput): Action | Promise<Action>}} Schedule
 */

/**
 * True if the schedule always takes the same action, whatever the budget.
 * @param {string} name
 */
export function isConstant(name) {
  return name === "dense" || name.startsWith("fixed:");
}

/**
 * `sol` at budgets at which the bundle's policy was measured to beat `hull`, else `hull`; without losses `sol` or
 * `uniform`. Where something else than a budget is asked for, `budget` is 1.
 * @param {SolConfig} config
 * @param {number} budget
 * @param {boolean} hasAxisTargets
 */
export function defaultSchedule(config, budget, hasAxisTargets) {
  const measured = config.actions.some((entry) => entry.loss !== null);
  if (config.policy !== null) {
    const { gain_over_hull, gain_budgets: [low, high] } = config.policy;
    if (!measured || (gain_over_hull > 0 && low <= budget && budget <= high)) return "sol";
  }
  return measured && !hasAxisTargets ? "hull" : "uniform";
}

/**
 * The actions that the controller and the schedule `name` work with; the dense action is always among them.
 * @param {SolConfig} config
 * @param {string} name
 * @param {boolean} hasAxisTargets
 */
export function scheduleActions(config, name, hasAxisTargets) {
  let actions = config.actions.map((entry) => entry.action);
  if (name === "sol" && config.policy !== null) {
    actions = config.policy.actions;
  } else if (name === "uniform" || name === "entropy" || hasAxisTargets) {
    const kvs = [...new Set([...actions.map((action) => action.kv), 100])].sort((a, b) => b - a);
    const variants = [...config.variants.values()];
    variants.sort((a, b) => b.bits - a.bits || b.channel_density - a.channel_density);
    actions = variants.flatMap((variant) =>
      kvs.map((kv) => new Action(kv, Math.round(100 * variant.channel_density), variant.bits)),
    );
  }
  return actions.some((action) => action.tag === config.dense.tag) ? actions : [...actions, config.dense];
}

/**
 * Builds a schedule by its name. Throws UsageError for one that this bundle or these targets don't allow.
 * @param {string} name
 * @param {Controller | AxisController} controller
 * @param {{seed: number | bigint | null, policy: DeferredPolicy | null, hull: Hull | null, variants: string[]}} parts
 * @returns {Schedule}
 */
export function makeSchedule(name, controller, { seed, policy, hull, variants }) {
  if (name === "dense") return { name, choose: () => controller.dense };
  if (name.startsWith("fixed:")) {
    const action = Action.parse(name.slice("fixed:".length));
    if (!variants.includes(action.variant)) {
      const has = `it has ${variants.join(", ")}`;
      throw new UsageError(`schedule ${name}: no variant ${action.variant} in this bundle; ${has}`);
    }
    return { name, choose: () => action };
  }
  if (name === "hull") {
    if (!(controller instanceof Controller)) {
      throw new UsageError("schedule hull: holds a budget or a loss; use uniform for targets on the axes");
    }
    if (hull === null) {
      const why = "no losses of this bundle's actions were measured";
      throw new UsageError(`schedule hull: ${why}; use uniform, or export the model with calibration`);
    }
    return new HullSchedule(controller, hull);
  }
  if (name === "uniform") return new UniformSchedule(controller);
  if (name === "entropy") return new EntropySchedule(controller);
  if (name === "random") return new RandomSchedule(controller, seed);
  if (name === "sol") {
    if (policy === null) {
      throw new UsageError("schedule sol: this bundle has no policy; use hull, or train one with `sol-rt train`");
    }
    return new SolSchedule(controller, policy);
  }
  throw new UsageError(`schedule: got ${brief(name)}, expected one of ${NAMES.join(", ")}`);
}
