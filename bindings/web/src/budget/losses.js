/** Expected loss of each action, at any context, as the export measured it. */

/** @import {SolConfig} from "../bundle/config.js" */
/** @import {Action} from "./actions.js" */

/** The measured losses of a bundle's actions. */
export class ActionLosses {
  /** @param {SolConfig} config */
  constructor(config) {
    /** @type {Map<string, {at: number[], losses: number[]}>} */
    this.curves = new Map();
    for (const entry of config.actions) {
      const points = entry.losses.size > 0 ? [...entry.losses] : entry.loss === null ? [] : [[1, entry.loss]];
      if (points.length > 0) this.#set(entry.action.tag, points);
    }
    if (this.curves.size > 0) this.#set(config.dense.tag, [[1, 0]]);
  }

  /** True if the export measured losses. */
  get measured() {
    return this.curves.size > 0;
  }

  /**
   * Expected added loss over dense in nats a token; NaN if the action was not measured.
   * @param {Action} action
   * @param {number} context
   */
  at(action, context) {
    const curve = this.curves.get(action.tag);
    return curve === undefined ? NaN : interpolate(Math.log(Math.max(context, 1)), curve.at, curve.losses);
  }

  /**
   * @param {string} tag
   * @param {number[][]} points
   */
  #set(tag, points) {
    this.curves.set(tag, { at: points.map(([context]) => Math.log(context)), losses: points.map(([, loss]) => loss) });
  }
}

/**
 * The value at `x` of the line through the points (xs, ys), with xs rising; constant beyond the first and the last.
 * @param {number} x
 * @param {number[]} xs
 * @param {number[]} ys
 */
export function interpolate(x, xs, ys) {
  const last = xs.length - 1;
  if (x <= xs[0]) return ys[0];
  if (x >= xs[last]) return ys[last];
  let i = 0;
  while (x >= xs[i + 1]) i++;
  return ys[i] + ((ys[i + 1] - ys[i]) / (xs[i + 1] - xs[i])) * (x - xs[i]);
}
