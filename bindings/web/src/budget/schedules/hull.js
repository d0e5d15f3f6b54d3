/** `hull`: the two neighbouring actions of the measured lower hull in turn. It needs no policy. */

/** @import {Controller} from "../controller.js" */
/** @import {Hull} from "../hull.js" */
/** @import {StepInput} from "./schedule.js" */

/** Takes one of the two actions of the hull around the step's allowance, whatever the text. */
export class HullSchedule {
  name = "hull";
  #carry = 0.5;

  /**
   * @param {Controller} controller
   * @param {Hull} hull
   */
  constructor(controller, hull) {
    this.controller = controller;
    this.hull = hull;
    this.places = hull.actions.map((known) => controller.actions.findIndex((action) => action.tag === known.tag));
  }

  /** @param {StepInput} step */
  choose({ context }) {
    const { controller } = this;
    if (controller.denseOnly) return controller.dense;
    const costs = controller.relativeCosts(context);
    const allowance = controller.allowance(context);
    let [index, high] = this.#around(allowance, context);
    const gap = costs[high] - costs[index];
    const share = gap > 0 ? (allowance - costs[index]) / gap : 1;
    this.#carry += Math.min(Math.max(share, 0), 1);
    if (this.#carry >= 1 - 1e-9) {
      this.#carry -= 1;
      index = high;
    }
    return controller.actions[controller.nearestAllowed(index, context)];
  }

  /**
   * Places of the two neighbouring corners of the hull around a relative cost.
   * @param {number} cost
   * @param {number} context
   */
  #around(cost, context) {
    const corners = this.hull.corners(context);
    for (let i = 1; i < corners.length; i++) {
      if (cost < corners[i].cost) return [this.places[corners[i - 1].place], this.places[corners[i].place]];
    }
    const last = this.places[corners[corners.length - 1].place];
    return [last, last];
  }
}
