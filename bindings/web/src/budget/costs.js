/** Cost of a decode step: bytes read from weights and KV cache (docs/reference/bundle-details.md section 4, "Bytes model"). */

/** @import {KvLayout, SolConfig} from "../bundle/config.js" */
/** @import {Action} from "./actions.js" */

/**
 * Tokens read and pages scored, sums over layers of which some have a window.
 * @param {KvLayout} kv
 * @param {number} held tokens in the cache with the new one
 * @param {number} oldPages KV pages before the newest
 * @param {number} pages those to be read of them where a layer attends to all tokens
 */
function readsByWindow(kv, held, oldPages, pages) {
  let tokens = 0;
  let scored = 0;
  kv.windows.forEach((window, layer) => {
    const seen = window ? Math.min(held, window) : held;
    const before = Math.floor((held - seen) / kv.page_size);
    const old = oldPages - before;
    const kept = Math.ceil((pages * old) / Math.max(oldPages, 1));
    const fewer = pages < oldPages && kept < old && !kv.dense_layers.includes(layer);
    tokens += fewer ? Math.min(seen, kv.page_size * (kept + 1) + Math.max(kv.sinks - kv.page_size * before, 0)) : seen;
    scored += fewer ? old : 0;
  });
  return { tokens, scored };
}

/** The bytes model. `context` is the number of tokens in the cache before the step. */
export class BytesCost {
  unit = "bytes";

  /** @param {SolConfig} config */
  constructor(config) {
    const heads = config.model.num_layers * config.model.num_kv_heads;
    this.config = config;
    this.denseAction = config.dense;
    this.perToken = heads * 4 * config.model.head_dim;
    this.perPage = heads * config.kv.page_size * (Math.floor(config.model.head_dim / 2) + 4);
    this.policy = config.policy === null ? 0 : /** @type {any} */ (config.files.get(config.policy.file)).bytes;
  }

  /**
   * Cost of one decode step, without the policy's run.
   * @param {Action} action
   * @param {number} context
   */
  step(action, context) {
    const { kv, model, variants } = this.config;
    const fixed = /** @type {any} */ (variants.get(action.variant)).weight_bytes;
    const held = context + 1;
    const oldPages = Math.ceil(held / kv.page_size) - 1;
    const pages = action.pages(context, kv.page_size);
    if (kv.windows.length) {
      const { tokens, scored } = readsByWindow(kv, held, oldPages, pages);
      return fixed + this.perToken * (tokens / model.num_layers) + this.perPage * (scored / model.num_layers);
    }
    const sparse = pages < oldPages ? 1 - kv.dense_layers.length / model.num_layers : 0;
    const tokens = held + sparse * (Math.min(held, kv.page_size * (pages + 1) + kv.sinks) - held);
    return fixed + this.perToken * tokens + this.perPage * (sparse * oldPages);
  }

  /**
   * Cost of a step of the dense action.
   * @param {number} context
   */
  dense(context) {
    return this.step(this.denseAction, context);
  }
}

/**
 * Costs of A actions at one context, in the cost model's unit. All but `dense` include the policy's run.
 * @typedef {{context: number, costs: number[], relative: number[], useful: boolean[], low: number, high: number,
 *   dense: number}} StepCosts
 */

/** `StepCosts` by context; keeps those of the last context. */
export class StepCostTable {
  /**
   * @param {Action[]} actions the dense one is among them
   * @param {BytesCost} cost
   * @param {number} policyCost cost of the policy's run that every step pays for
   */
  constructor(actions, cost, policyCost) {
    this.actions = actions;
    this.cost = cost;
    this.policyCost = policyCost;
    /** @type {StepCosts | null} */
    this.last = null;
  }

  /**
   * @param {number} context
   * @returns {StepCosts}
   */
  at(context) {
    if (this.last?.context === context) return this.last;
    const dense = this.cost.dense(context);
    const costs = this.actions.map((action) => this.cost.step(action, context) + this.policyCost);
    const limit = dense + this.policyCost;
    this.last = {
      context,
      costs,
      relative: costs.map((cost) => cost / dense),
      useful: costs.map((cost, i) => cost < limit || this.actions[i].tag === this.cost.denseAction.tag),
      low: Math.min(...costs),
      high: Math.max(...costs),
      dense,
    };
    return this.last;
  }
}
