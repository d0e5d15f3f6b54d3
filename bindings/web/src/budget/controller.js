/**
 * The controllers: one holds a budget or what a loss allows, the other a mean on each axis. Before a step they
 * report the allowed actions to a schedule, after it they book its cost (docs/reference/decode-loop.md sections 2 and 3).
 */
import { UsageError } from "../errors.js";
import { Action } from "./actions.js";
import { StepCostTable } from "./costs.js";
import { SpendWindow } from "./spend_window.js";

/** @import {BytesCost, StepCosts} from "./costs.js" */

const EPSILON = 1e-9;
const HORIZON = 8;
const NEAR_HULL = 0.01;

/**
 * Mean settings on the three axes; null where there is no target.
 * @typedef {{kv_density: number | null, channel_density: number | null, bits: number | null}} AxisTargets
 */

/** Base of both controllers. Arrays have one entry for each action. */
class BaseController {
  /** @type {AxisTargets | null} */
  axisTargets = null;
  /** True if, at some step so far, even the cheapest action cost more than was asked for. */
  floored = false;

  /**
   * @param {Action[]} actions what schedules choose from, the dense action among them
   * @param {BytesCost} cost
   * @param {number} policyCost cost of the policy's run that each step pays for
   */
  constructor(actions, cost, policyCost) {
    this.actions = actions;
    this.cost = cost;
    this.dense = cost.denseAction;
    this.policyCost = policyCost;
    this.denseIndex = actions.findIndex((action) => action.tag === this.dense.tag);
    if (this.denseIndex < 0) {
      throw new UsageError(`controller: the dense action ${this.dense.tag} is not among the actions to choose from`);
    }
    this.costs = new StepCostTable(actions, cost, policyCost);
    this.settings = actions.map((action) => axisSettings(action, this.dense));
    this.spend = new SpendWindow();
  }

  /** True if only the dense action is allowed. */
  get denseOnly() {
    return false;
  }

  /**
   * Cost of each action in dense steps, the policy's run included.
   * @param {number} context
   */
  relativeCosts(context) {
    return this.costs.at(context).relative;
  }

  /**
   * Marks the actions that keep the promise. If none does: the actions that miss it least.
   * @param {number} _context
   * @returns {boolean[]}
   */
  allowed(_context) {
    throw new Error("abstract");
  }

  /**
   * Cost in dense steps that this step should aim for.
   * @param {number} _context
   * @returns {number}
   */
  target(_context) {
    throw new Error("abstract");
  }

  /**
   * @param {number} index
   * @param {number} context
   */
  allows(index, context) {
    return this.allowed(context)[index];
  }

  /**
   * `index` if that action is allowed, else the allowed action whose cost is nearest to its cost.
   * @param {number} index
   * @param {number} context
   */
  nearestAllowed(index, context) {
    const allowed = this.allowed(context);
    if (allowed[index]) return index;
    const costs = this.relativeCosts(context);
    return leastAllowed(costs.map((cost) => Math.abs(cost - costs[index])), allowed);
  }

  /**
   * Books one decode step.
   * @param {Action} action
   * @param {number} context tokens in the cache before it
   */
  record(action, context) {
    const costs = this.costs.at(context);
    const index = this.actions.findIndex((known) => known.tag === action.tag);
    const cost = index < 0 ? this.cost.step(action, context) + this.policyCost : costs.costs[index];
    this.book(cost, index < 0 ? axisSettings(action, this.dense) : this.settings[index], costs);
    return { cost, relative: cost / costs.dense };
  }

  /**
   * @param {number} _cost
   * @param {number[]} _settings
   * @param {StepCosts} _costs
   */
  book(_cost, _settings, _costs) {
    throw new Error("abstract");
  }

  /** Sum of all costs so far / sum of the dense costs of the same steps; 1 before the first step. */
  get achieved() {
    return this.spend.full ? this.spend.spent / this.spend.full : 1;
  }

  /** @returns {number | null} the budget that the next step holds; null under a loss and under axis targets */
  get budget() {
    return null;
  }

  /** Holds a budget from now on; throws as `checkBudget`. @param {number} budget */
  setBudget(budget) {
    this.checkBudget(budget);
  }

  /** Throws UsageError for what is no share from 0 to 1, and under axis targets. @param {unknown} _budget */
  checkBudget(_budget) {
    const axes = "kv_density, channel_density and bits";
    throw new UsageError(`budget: this run holds ${axes} instead; start a run with a budget`);
  }

  /** @returns {number | null} the budget asked for, over all steps so far; null under axis targets */
  get requested() {
    return null;
  }
}

/** Keeps the running spend of a generation at a budget, or at what a loss allows. */
export class Controller extends BaseController {
  /** @type {number} */
  #budget;
  /** @type {((context: number) => number) | null} */
  #budgetAt;
  #policyRun;
  /** Sum of the allowances so far, or of the cheapest action's cost where that was more. */
  #served = 0;
  /** True if something else was asked for at first. */
  #changed = false;

  /**
   * @param {Action[]} actions
   * @param {BytesCost} cost
   * @param {number} budget share of the dense cost to hold, 0 to 1; 1 means dense only, without the policy
   * @param {{budgetAt?: ((context: number) => number) | null, policyCost?: boolean}} [options] `budgetAt` gives the
   *   budget of a step from its context, in place of `budget`
   */
  constructor(actions, cost, budget, { budgetAt = null, policyCost = false } = {}) {
    super(actions, cost, policyCost && !(budget === 1 && budgetAt === null) ? cost.policy : 0);
    this.checkBudget(budget);
    this.#budget = budget;
    this.#budgetAt = budgetAt;
    this.#policyRun = policyCost ? cost.policy : 0;
  }

  get denseOnly() {
    return this.#budget === 1 && this.#budgetAt === null;
  }

  /** The budget that the next step holds; null under a loss. @type {number | null} */
  get budget() {
    return this.#budgetAt === null ? this.#budget : null;
  }

  /**
   * Holds a budget from now on. What the steps so far were allowed stays as it is, but where the cheapest action cost
   * more, that counts.
   * @param {number} budget
   */
  setBudget(budget) {
    super.setBudget(budget);
    this.#budget = budget;
    this.#budgetAt = null;
    this.spend.allowed = this.#served; // what a floor cost is not made up for
    this.#changed ||= this.spend.steps > 0;
    const policyCost = this.denseOnly ? 0 : this.#policyRun;
    if (policyCost !== this.policyCost) {
      this.policyCost = policyCost;
      this.costs = new StepCostTable(this.actions, this.cost, policyCost);
    }
  }

  /** @param {unknown} budget */
  checkBudget(budget) {
    if (typeof budget === "number" && budget >= 0 && budget <= 1) return;
    throw new UsageError(`budget: got ${String(budget)}, expected a share of the dense cost from 0 to 1`);
  }

  /**
   * Cost in dense steps that this step may have on average.
   * @param {number} context
   */
  allowance(context) {
    const costs = this.costs.at(context);
    return this.#allowance(costs) / costs.dense;
  }

  /** @param {number} context */
  target(context) {
    const costs = this.costs.at(context);
    const wanted = this.#allowance(costs) - this.spend.deviation / HORIZON;
    return Math.min(Math.max(wanted, costs.low), costs.high) / costs.dense;
  }

  /** @param {number} context */
  allowed(context) {
    if (this.denseOnly) return this.actions.map((action) => action.tag === this.dense.tag);
    const costs = this.costs.at(context);
    const allowance = this.#allowance(costs);
    if (isBelowFloor(allowance, costs)) return costs.costs.map((cost) => cost <= costs.low * (1 + EPSILON));
    const halfWidth = this.spend.halfWidth(costs.dense);
    return least(
      costs.costs.map((cost, i) =>
        costs.useful[i] ? Math.max(Math.abs(this.spend.deviation + cost - allowance) - halfWidth, 0) : Infinity,
      ),
    );
  }

  /**
   * @param {number} cost
   * @param {number[]} _settings
   * @param {StepCosts} costs
   */
  book(cost, _settings, costs) {
    const allowance = this.#allowance(costs);
    this.spend.add(cost, allowance, costs.dense);
    this.#served += this.denseOnly ? allowance : Math.max(allowance, costs.low);
    if (!this.denseOnly && isBelowFloor(allowance, costs)) this.floored = true;
  }

  get requested() {
    return (this.#budgetAt !== null || this.#changed) && this.spend.full ? this.spend.allowed / this.spend.full : this.#budget;
  }

  /** @param {StepCosts} costs */
  #allowance(costs) {
    return (this.#budgetAt === null ? this.#budget : this.#budgetAt(costs.context)) * costs.dense;
  }
}

/** Keeps the mean settings of a generation at axis targets. */
export class AxisController extends BaseController {
  /**
   * @param {Action[]} actions
   * @param {BytesCost} cost
   * @param {AxisTargets} axisTargets at least one is not null
   * @param {boolean} policyCost whether each step pays for a run of the policy
   */
  constructor(actions, cost, axisTargets, policyCost) {
    super(actions, cost, policyCost ? cost.policy : 0);
    this.axisTargets = axisTargets;
    this.targets = asShares(axisTargets, this.settings, this.dense, actions);
    this.windows = this.targets.map(() => new SpendWindow());
  }

  /** @param {number} context */
  target(context) {
    const costs = this.costs.at(context);
    return costs.high / costs.dense;
  }

  /** @param {number} _context */
  allowed(_context) {
    const excess = (/** @type {number} */ setting, /** @type {number} */ axis) =>
      Math.max(Math.abs(this.windows[axis].deviation + setting - this.targets[axis]) - this.windows[axis].halfWidth(1), 0);
    return least(this.settings.map((settings) => Math.max(...settings.map(excess))));
  }

  /**
   * @param {number} cost
   * @param {number[]} settings
   * @param {StepCosts} costs
   */
  book(cost, settings, costs) {
    this.spend.add(cost, cost, costs.dense);
    for (const [axis, window] of this.windows.entries()) window.add(settings[axis], this.targets[axis], 1);
  }
}

/**
 * Index of the smallest value among the allowed ones; the first of several.
 * @param {number[]} values
 * @param {boolean[]} allowed
 */
export function leastAllowed(values, allowed) {
  let best = -1;
  for (const [i, value] of values.entries()) if (allowed[i] && (best < 0 || value < values[best])) best = i;
  return best;
}

/**
 * Marks where `excess` is smallest. If any is 0, marks the zeros.
 * @param {number[]} excess
 */
function least(excess) {
  const low = Math.min(...excess);
  return excess.map((value) => value <= low + EPSILON * Math.max(1, low));
}

/**
 * @param {number} allowance
 * @param {StepCosts} costs
 */
function isBelowFloor(allowance, costs) {
  return allowance < costs.low * (1 - EPSILON);
}

/**
 * KV density, channel density and bits of an action as shares of the dense action's.
 * @param {Action} action
 * @param {Action} dense
 */
function axisSettings(action, dense) {
  return [action.kv_density, action.channel_density, action.bits / dense.bits];
}

/**
 * The targets as shares of the dense settings; an axis without one gets the highest setting of the actions.
 * @param {AxisTargets} targets
 * @param {number[][]} settings
 * @param {Action} dense
 * @param {Action[]} actions
 */
function asShares(targets, settings, dense, actions) {
  const axes = /** @type {["kv_density" | "channel_density" | "bits", number][]} */ ([
    ["kv_density", 1], ["channel_density", 1], ["bits", dense.bits],
  ]);
  const wanted = axes.map(([name, full], axis) => {
    const values = settings.map((row) => row[axis] * full);
    const [low, high, value] = [Math.min(...values), Math.max(...values), targets[name]];
    if (value === null) return high / full;
    if (!(value >= low - 1e-6 && value <= high + 1e-6)) {
      throw new UsageError(`${name}: got ${value}, expected ${low} to ${high}, as this bundle has`);
    }
    return value / full;
  });
  const offsets = settings.map((row) => row.map((setting, axis) => setting - wanted[axis]));
  if (distanceToHull(offsets) > NEAR_HULL) {
    const lengths = offsets.map((row) => row.reduce((sum, x) => sum + x * x, 0));
    const near = actions[lengths.indexOf(Math.min(...lengths))];
    const what = axes.flatMap(([name]) => (targets[name] === null ? [] : [name])).join(" and ");
    throw new UsageError(`${what}: no mix of this bundle's actions has these means; the nearest action is ${near.tag}`);
  }
  return wanted;
}

/**
 * Distance from the origin to the convex hull of points, by Frank-Wolfe steps.
 * @param {number[][]} points
 */
function distanceToHull(points) {
  const dot = (/** @type {number[]} */ a, /** @type {number[]} */ b) => a.reduce((sum, x, i) => sum + x * b[i], 0);
  const lowest = (/** @type {number[]} */ values) => points[values.indexOf(Math.min(...values))];
  let nearest = lowest(points.map((point) => dot(point, point)));
  for (let round = 0; round < 1000; round++) {
    const vertex = lowest(points.map((point) => dot(point, nearest)));
    const way = nearest.map((x, i) => x - vertex[i]);
    const gain = dot(nearest, way);
    if (gain < 1e-7) break;
    const share = Math.min(gain / dot(way, way), 1);
    nearest = nearest.map((x, i) => x - share * way[i]);
  }
  return Math.sqrt(dot(nearest, nearest));
}
