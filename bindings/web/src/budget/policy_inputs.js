/** The scalar inputs of a policy (docs/reference/bundle-details.md section 5). */

/** @import {Distribution} from "../engine/distribution.js" */

const RECENT = 16;

export const KNOWN_SCALARS = [
  "step_fraction", "budget", "spend_deviation", "entropy", "top_probability", "surprise", "log_context", "margin",
  "previous_cost", "recent_spend",
];

/** Computes the scalar inputs of a policy over one run of decode steps. */
export class PolicyInputs {
  position = 0;
  /** Index of the last step's action in the policy's list; -1 at the start of an episode. */
  previous = -1;
  episodeCost = 0;
  #recent = new Array(RECENT).fill(1);

  /**
   * @param {string[]} names names of the wanted scalars
   * @param {number} horizon steps of an episode
   */
  constructor(names, horizon) {
    this.names = names;
    this.horizon = horizon;
  }

  /**
   * The scalars before decode step `step` of the run, in the order of the names.
   * @param {number} step
   * @param {{context: number, token: number, distribution: Distribution, budget: number}} observation
   */
  at(step, { context, token, distribution, budget }) {
    this.position = step % this.horizon;
    if (this.position === 0) {
      this.previous = -1;
      this.episodeCost = 0;
    }
    /** @type {Record<string, () => number>} */
    const scalars = {
      step_fraction: () => this.position / this.horizon,
      budget: () => budget,
      spend_deviation: () => (this.position ? this.episodeCost / this.position - budget : 0),
      entropy: () => distribution.entropy,
      top_probability: () => distribution.topProbability,
      surprise: () => -distribution.logProbability(token),
      log_context: () => Math.log2(Math.max(context, 1) / 16),
      margin: () => distribution.margin,
      previous_cost: () => this.#recent[RECENT - 1],
      recent_spend: () => this.#recent.reduce((a, b) => a + b, 0) / RECENT,
    };
    return this.names.map((name) => scalars[name]());
  }

  /**
   * Records a finished step.
   * @param {number} action index of the step's action in the policy's list; -1 if the list lacks it
   * @param {number} relativeCost cost of the step and the policy in dense steps
   */
  record(action, relativeCost) {
    this.previous = action;
    this.episodeCost += relativeCost;
    this.#recent.shift();
    this.#recent.push(relativeCost);
  }
}
