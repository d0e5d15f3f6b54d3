/** `random`: draws actions so that their expected cost is the target. */
import { RandomWords, SCHEDULE, uniform } from "../../philox.js";

/** @import {AxisController, Controller} from "../controller.js" */
/** @import {StepInput} from "./schedule.js" */

/**
 * Draws actions with probability proportional to exp(-rate * cost); under axis targets all allowed ones alike.
 * A draw depends on seed and context alone.
 */
export class RandomSchedule {
  name = "random";

  /**
   * @param {Controller | AxisController} controller
   * @param {number | bigint | null} seed
   */
  constructor(controller, seed) {
    this.controller = controller;
    this.random = new RandomWords(seed, SCHEDULE);
  }

  /** @param {StepInput} step */
  choose({ context }) {
    const { controller } = this;
    if (controller.denseOnly) return controller.dense;
    const candidates = controller.allowed(context).flatMap((allowed, index) => (allowed ? [index] : []));
    const number = uniform(this.random.at(context, 0));
    if (controller.axisTargets !== null) return controller.actions[candidates[Math.trunc(number * candidates.length)]];
    const costs = controller.relativeCosts(context);
    const shares = tilted(candidates.map((index) => costs[index]), controller.target(context));
    let total = 0;
    const sums = shares.map((share) => (total += share));
    const place = sums.findIndex((sum) => sum > number * total);
    return controller.actions[candidates[place < 0 ? candidates.length - 1 : place]];
  }
}

/**
 * The distribution of largest entropy whose expected cost is `target`, or the nearest possible one.
 * @param {number[]} costs
 * @param {number} target
 */
function tilted(costs, target) {
  let [low, high] = [-500, 500];
  /** @type {number[]} */
  let shares = [];
  for (let round = 0; round < 40; round++) {
    const rate = (low + high) / 2;
    const exponents = costs.map((cost) => -rate * cost);
    const most = Math.max(...exponents);
    shares = exponents.map((exponent) => Math.exp(exponent - most));
    const sum = shares.reduce((a, b) => a + b, 0);
    shares = shares.map((share) => share / sum);
    if (shares.reduce((expected, share, i) => expected + share * costs[i], 0) > target) low = rate;
    else high = rate;
  }
  return shares;
}
