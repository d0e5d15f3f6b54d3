/** The lower hull of a bundle's actions: which actions to mix at a budget, and which budget a loss takes. */

/** @import {Action} from "./actions.js" */
/** @import {BytesCost} from "./costs.js" */
/** @import {ActionLosses} from "./losses.js" */

const BLOCK = 64;

/**
 * A corner of the hull: place of the action, its relative cost, its expected loss in nats a token.
 * @typedef {{place: number, cost: number, loss: number}} Corner
 */

/** The lower hull of actions, by context. */
export class Hull {
  /**
   * @param {Action[]} actions what may be mixed, the dense action among them
   * @param {BytesCost} cost
   * @param {ActionLosses} losses
   */
  constructor(actions, cost, losses) {
    this.actions = actions;
    this.cost = cost;
    this.losses = losses;
    this.first = -1;
    /** @type {{place: number, loss: number}[]} */
    this.members = [];
  }

  /**
   * The corners at a context, from the cheapest action to dense; costs rise.
   * @param {number} context
   * @returns {Corner[]}
   */
  corners(context) {
    const first = Math.floor(context / BLOCK) * BLOCK;
    if (first !== this.first) this.#compute(first);
    return this.members.map(({ place, loss }) => ({ place, cost: this.#relative(place, context), loss }));
  }

  /**
   * Relative cost of the cheapest mix that loses at most `loss` nats a token; dense's if none does.
   * @param {number} loss
   * @param {number} context
   */
  costAt(loss, context) {
    const corners = this.corners(context);
    if (corners[0].loss <= loss) return corners[0].cost;
    for (let i = 1; i < corners.length; i++) {
      const [cheap, dear] = [corners[i - 1], corners[i]];
      if (dear.loss <= loss) {
        const share = (cheap.loss - loss) / (cheap.loss - dear.loss);
        return cheap.cost + share * (dear.cost - cheap.cost);
      }
    }
    return corners[corners.length - 1].cost;
  }

  /**
   * @param {number} place
   * @param {number} context
   */
  #relative(place, context) {
    return this.cost.step(this.actions[place], context) / this.cost.dense(context);
  }

  /** @param {number} first */
  #compute(first) {
    const middle = first + BLOCK / 2;
    const dense = this.actions.findIndex((action) => action.tag === this.cost.denseAction.tag);
    /** @type {[number, number][]} */
    const points = [[1, this.losses.at(this.actions[dense], middle)]];
    const places = [dense];
    for (const [place, action] of this.actions.entries()) {
      const [cost, loss] = [this.#relative(place, middle), this.losses.at(action, middle)];
      if (cost < 1 && !Number.isNaN(loss)) {
        points.push([cost, loss]);
        places.push(place);
      }
    }
    const members = fallingHull(points);
    this.members = members.map((index) => ({ place: places[index], loss: points[index][1] }));
    if (members[members.length - 1] !== 0) this.members.push({ place: dense, loss: points[0][1] });
    this.first = first;
  }
}

/**
 * Indices of the corners of the lower convex hull of points, in ascending order of their first number.
 * @param {[number, number][]} points
 */
export function lowerHull(points) {
  const order = points.map((_, index) => index);
  order.sort((a, b) => points[a][0] - points[b][0] || points[a][1] - points[b][1] || a - b);
  /** @type {number[]} */
  const corners = [];
  for (const index of order) {
    if (corners.length > 0 && points[index][0] === points[corners[corners.length - 1]][0]) continue;
    while (corners.length > 1) {
      const [a, b] = [points[corners[corners.length - 2]], points[corners[corners.length - 1]]];
      if (turn(a, b, points[index]) > 0) break;
      corners.pop();
    }
    corners.push(index);
  }
  return corners;
}

/** @param {[number, number][]} points */
function fallingHull(points) {
  const corners = lowerHull(points);
  let best = 0;
  for (const [i, index] of corners.entries()) if (points[index][1] < points[corners[best]][1]) best = i;
  return corners.slice(0, best + 1);
}

/**
 * Positive if the way from a over b to c turns left.
 * @param {[number, number]} a
 * @param {[number, number]} b
 * @param {[number, number]} c
 */
function turn(a, b, c) {
  return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
}
