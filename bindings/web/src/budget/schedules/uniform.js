/** `uniform`: the two nearest settings of each axis in fixed proportions. `entropy`: the dearer ones on uncertain steps. */
import { leastAllowed } from "../controller.js";

/** @import {Action} from "../actions.js" */
/** @import {AxisController, Controller} from "../controller.js" */
/** @import {StepInput} from "./schedule.js" */

const GRID = 160;
const [KV, CHANNELS, BITS] = [0, 1, 2];

/** The three axes of an action set, and the path along which `uniform` turns them down. */
class Axes {
  /** @param {Action[]} actions */
  constructor(actions) {
    const rows = actions.map((action) => [action.kv_density, action.channel_density, action.bits]);
    this.levels = [KV, CHANNELS, BITS].map((axis) => [...new Set(rows.map((row) => row[axis]))].sort((a, b) => a - b));
    this.scale = this.levels.map((levels) => levels[levels.length - 1]);
    this.settings = rows.map((row) => row.map((value, axis) => value / this.scale[axis]));
    let corner = [...this.scale];
    const corners = [corner];
    for (const axis of [BITS, KV, CHANNELS]) {
      corner = [...corner];
      corner[axis] = this.levels[axis][0];
      corners.push(corner);
    }
    this.path = corners.reverse();
    /** Share of each action at the GRID + 1 points of the path. */
    this.mixes = Array.from({ length: GRID + 1 }, (_, j) => this.#mix(this.positions(j / GRID)));
  }

  /**
   * The settings at share `u` of the path, one for each axis.
   * @param {number} u
   */
  positions(u) {
    const at = u * (this.path.length - 1);
    const below = Math.min(Math.trunc(at), this.path.length - 2);
    return this.path[below].map((start, axis) => start + (at - below) * (this.path[below + 1][axis] - start));
  }

  /**
   * The two levels around `position`, and the share of the higher one.
   * @param {number} axis
   * @param {number} position
   */
  around(axis, position) {
    const levels = this.levels[axis];
    const found = levels.findIndex((level) => level >= position);
    const above = found < 0 ? levels.length - 1 : found;
    const [low, high] = [levels[Math.max(above - 1, 0)], levels[above]];
    return [low, high, high === low ? 1 : Math.min(Math.max((position - low) / (high - low), 0), 1)];
  }

  /**
   * Index of the action nearest to these settings; the first of several.
   * @param {number[]} settings
   */
  nearest(settings) {
    const wanted = settings.map((value, axis) => value / this.scale[axis]);
    const distances = this.settings.map((row) => distance(row, wanted));
    return distances.indexOf(Math.min(...distances));
  }

  /** @param {number[]} positions */
  #mix(positions) {
    const mix = new Array(this.settings.length).fill(0);
    const around = positions.map((position, axis) => this.around(axis, position));
    for (let ups = 0; ups < 8; ups++) {
      const up = [4, 2, 1].map((bit) => (ups & bit) !== 0);
      const share = around.reduce((product, [, , s], axis) => product * (up[axis] ? s : 1 - s), 1);
      if (share > 0) mix[this.nearest(around.map(([low, high], axis) => (up[axis] ? high : low)))] += share;
    }
    return mix;
  }
}

/** @type {Map<string, Axes>} */
const known = new Map();

/** @param {Action[]} actions */
function axesOf(actions) {
  const key = actions.map((action) => action.tag).join(" ");
  let axes = known.get(key);
  if (axes === undefined) {
    if (known.size >= 8) known.clear();
    known.set(key, (axes = new Axes(actions)));
  }
  return axes;
}

/**
 * @param {number[]} a
 * @param {number[]} b
 */
function distance(a, b) {
  return a.reduce((sum, x, i) => sum + Math.abs(x - b[i]), 0);
}

/** Alternates between the two nearest settings on each axis. */
export class UniformSchedule {
  name = "uniform";
  #carry = [0, 1 / 3, 2 / 3];
  /** By how much of a turn the higher settings come early. */
  forward = 0;

  /** @param {Controller | AxisController} controller */
  constructor(controller) {
    this.controller = controller;
    this.axes = axesOf(controller.actions);
  }

  /**
   * @param {StepInput} step
   * @returns {Action}
   */
  choose({ context }) {
    const { axes, controller } = this;
    if (controller.denseOnly) return controller.dense;
    let index = axes.nearest(this.#wanted(context).map((position, axis) => this.#deal(axis, position)));
    if (controller.axisTargets === null) {
      index = controller.nearestAllowed(index, context);
    } else {
      const allowed = controller.allowed(context);
      const here = axes.settings[index];
      if (!allowed[index]) index = leastAllowed(axes.settings.map((row) => distance(row, here)), allowed);
    }
    return controller.actions[index];
  }

  /**
   * One of the two levels around `position`; over the steps, their mean is the mean of the positions.
   * @param {number} axis
   * @param {number} position
   */
  #deal(axis, position) {
    const [low, high, share] = this.axes.around(axis, position);
    if (share >= 1) return high;
    this.#carry[axis] += share;
    if (this.#carry[axis] < 1 - this.forward - 1e-9) return low;
    this.#carry[axis] -= 1;
    return high;
  }

  /**
   * The settings that this step aims for.
   * @param {number} context
   */
  #wanted(context) {
    const { axes, controller } = this;
    const targets = controller.axisTargets;
    if (targets !== null) {
      return [targets.kv_density, targets.channel_density, targets.bits].map((value, axis) => value ?? axes.scale[axis]);
    }
    const costs = controller.relativeCosts(context);
    const expected = axes.mixes.map((mix) => mix.reduce((sum, share, i) => sum + share * costs[i], 0));
    for (let j = 1; j < expected.length; j++) expected[j] = Math.max(expected[j], expected[j - 1]);
    const wanted = Math.min(Math.max(controller.target(context), expected[0]), expected[GRID]);
    const above = expected.findIndex((cost) => cost >= wanted);
    if (above === 0) return axes.positions(0);
    const rise = expected[above] - expected[above - 1];
    return axes.positions((above - 1 + (wanted - expected[above - 1]) / rise) / GRID);
  }
}

const DECAY = 0.95;
const GAIN = 0.5;
const LIMIT = 2;

/** The mix of `uniform`, with its dearer settings on the steps where the model was uncertain before. */
export class EntropySchedule extends UniformSchedule {
  name = "entropy";
  #entropy = new RunningZScore();
  #closeness = new RunningZScore();

  /** @param {StepInput} step */
  choose(step) {
    const entropy = this.#entropy.update(step.distribution.entropy);
    const closeness = this.#closeness.update(1 - step.distribution.margin);
    this.forward = (GAIN * (entropy + closeness)) / 2;
    return super.choose(step);
  }
}

/** Running z-score of a sequence: the distance of a value from the running mean, in standard deviations. */
class RunningZScore {
  #mean = 0;
  #variance = 0;
  #weight = 0;

  /** @param {number} value */
  update(value) {
    const deviation = Math.sqrt(this.#variance);
    const score = deviation > 0 ? (value - this.#mean) / deviation : 0;
    this.#weight = DECAY * this.#weight + 1;
    const share = 1 / this.#weight;
    const step = value - this.#mean;
    this.#mean += share * step;
    this.#variance = (1 - share) * (this.#variance + share * step * step);
    return Math.min(Math.max(score, -LIMIT), LIMIT);
  }
}
