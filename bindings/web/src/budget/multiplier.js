/** The Lagrange multiplier: what the policy's logits are charged for a dense step's cost (docs/reference/decode-loop.md, `sol`). */
import { lowerHull } from "./hull.js";

const MEMORY = 64;
const EPSILON = 1e-9;

/**
 * An edge of a step's hull: minus its slope, and its width in dense steps.
 * @typedef {[number, number]} Edge
 */

/** Computes the multiplier for each step, in logits for each dense step of cost. */
export class Multiplier {
  /** @type {{least: number, edges: Edge[]}[]} */
  #steps = [];

  /**
   * The multiplier for a step; the step counts among the last ones from now on.
   * @param {number[]} logits the policy's logits
   * @param {number[]} costs costs of the same actions in dense steps
   * @param {number} target cost that the step should aim for, in dense steps
   */
  at(logits, costs, target) {
    if (this.#steps.length === MEMORY) this.#steps.shift();
    const points = costs.map((cost, i) => /** @type {[number, number]} */ ([cost, -logits[i]]));
    const corners = lowerHull(points).map((index) => points[index]);
    const edges = corners.slice(1).map((high, i) => {
      const low = corners[i];
      return /** @type {Edge} */ ([(high[1] - low[1]) / (high[0] - low[0]), high[0] - low[0]]);
    });
    this.#steps.push({ least: corners[0][0], edges });
    const all = this.#steps.flatMap((step) => step.edges).sort((a, b) => a[0] - b[0] || a[1] - b[1]);
    if (all.length === 0) return 0;
    let remaining = this.#steps.reduce((sum, step) => sum + (target - step.least), 0);
    let taken = 0;
    for (const [, width] of all) {
      if (width / 2 > remaining) break;
      remaining -= width;
      taken += 1;
    }
    return -between(all.map(([slope]) => slope), taken);
  }
}

/**
 * A number with `count` of the ascending numbers below it and the others above it.
 * @param {number[]} ascending
 * @param {number} count
 */
function between(ascending, count) {
  const [first, last] = [ascending[0], ascending[ascending.length - 1]];
  const beyond = EPSILON + Math.abs(count === 0 ? first : last) * EPSILON;
  if (count === 0) return first - beyond;
  if (count === ascending.length) return last + beyond;
  return (ascending[count - 1] + ascending[count]) / 2;
}
