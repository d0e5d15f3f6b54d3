/** The engine: runs tokens under an action on one KV cache and returns logits and hidden states. */
import { channels } from "../bundle/config.js";
import { BusyError, ContextError, NumericError, ProviderError } from "../errors.js";
import { Distribution } from "./distribution.js";
import { Graphs } from "./graphs.js";
import { KvCache } from "./kv_cache.js";
import { breathe } from "./runtime.js";

/** @import {Action} from "../budget/actions.js" */
/** @import {Bundle} from "../bundle/bundle.js" */
/** @import {ModelDims, Variant} from "../bundle/config.js" */
/** @import {OpenGraph} from "./graphs.js" */
/** @import {Runtime} from "./runtime.js" */

const ALL_PAGES = 1 << 30; // covers every context: attention reads all tokens
const CHUNK = 128;
const CHANNEL_INPUTS = /** @type {const} */ (["active_up", "active_down", "active_qkv", "active_o"]);

/**
 * The result of a run: the distribution after the last token, and the output of the final norm there, [hidden].
 * @typedef {{distribution: Distribution, hidden: Float32Array}} StepOutput
 */

/** Runs a bundle's variants on one KV cache. */
export class Engine {
  /** The tokens in the cache. @type {number[]} */
  tokens = [];
  /** The run that filled the cache for itself: a newer run takes it over. @type {object | null} */
  owner = null;
  closed = false;
  /** The run in progress, or the last one. @type {Promise<unknown>} */
  #last = Promise.resolve();

  /**
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   * @param {number} maxContext
   * @param {Graphs} graphs
   * @param {"float16" | "float32"} dtype type of the cache
   * @param {Action} prefill the action that runs prompts
   */
  constructor(bundle, runtime, maxContext, graphs, dtype, prefill) {
    this.bundle = bundle;
    this.runtime = runtime;
    this.maxContext = maxContext;
    this.graphs = graphs;
    this.prefill = prefill;
    const onGpu = runtime.provider === "webgpu";
    this.cache = new KvCache(runtime.ort, bundle.config.model, bundle.config.kv, dtype, onGpu);
  }

  /**
   * Opens the graphs of the dense action and of prompts. Others are opened when an action first needs them.
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   * @param {number} maxContext
   * @param {Action} prefill
   */
  static async open(bundle, runtime, maxContext, prefill) {
    const { kv, model, variants, dense } = bundle.config;
    if (kv.dtype !== "float16") {
      const next = "export the bundle with --kv float16";
      throw new ProviderError(`provider ${runtime.provider}: has no operators for a cache in ${kv.dtype}; ${next}`);
    }
    const [ofDense, ofPrompts] = [dense, prefill].map((action) => /** @type {Variant} */ (variants.get(action.variant)));
    const graphs = new Graphs(bundle, runtime);
    try {
      const { dtype } = await graphs.open(ofDense, false, false);
      await graphs.open(ofPrompts, false, activeChannels(ofPrompts, model).choosesChannels);
      return new Engine(bundle, runtime, maxContext, graphs, dtype, prefill);
    } catch (error) {
      await graphs.release();
      throw error;
    }
  }

  get length() {
    return this.tokens.length;
  }

  /**
   * Takes the engine over, and resolves when the run in progress, which ends after its chunk, no longer changes the cache.
   * @param {object} owner
   */
  async take(owner) {
    this.owner = owner;
    await this.#last;
  }

  /**
   * Throws BusyError if a newer owner has taken the engine over, or the model is closed.
   * @param {object} owner
   */
  requireTurn(owner) {
    if (this.closed) throw new BusyError("this model is closed; load the bundle again");
    if (this.owner === owner) return;
    const why = "this generation was interrupted by another one on the same model";
    throw new BusyError(`${why}; finish or close one first`);
  }

  /**
   * Keeps the first `length` tokens of the cache.
   * @param {number} length
   */
  truncate(length) {
    this.tokens.length = Math.min(length, this.tokens.length);
  }

  /**
   * Appends tokens to the cache. One token is a decode step under `action`; several run in chunks with attention to all
   * tokens. A call that fails or is aborted leaves a prefix of the tokens in the cache.
   * @param {object} owner who has taken the engine over; if another one does, this call ends with a BusyError
   * @param {number[]} tokens
   * @param {Action} action
   * @param {AbortSignal} [signal]
   * @returns {Promise<StepOutput>}
   */
  forward(owner, tokens, action, signal) {
    const run = this.#forward(owner, tokens, action, signal);
    this.#last = run.catch(() => undefined);
    return run;
  }

  /**
   * @param {object} owner
   * @param {number[]} tokens
   * @param {Action} action
   * @param {AbortSignal} [signal]
   * @returns {Promise<StepOutput>}
   */
  async #forward(owner, tokens, action, signal) {
    this.requireTurn(owner);
    const wanted = this.length + tokens.length;
    if (wanted > this.maxContext) {
      const expected = `expected at most ${this.maxContext}`;
      throw new ContextError(`context: got ${wanted} tokens, ${expected}; shorten the prompt or the answer`);
    }
    const choosesTokens = tokens.length === 1 && action.kv < 100;
    await this.cache.grow(wanted, choosesTokens);
    /** @type {StepOutput | null} */
    let output = null;
    for (let start = 0; start < tokens.length; start += CHUNK) {
      await breathe();
      signal?.throwIfAborted();
      this.requireTurn(owner);
      output = await this.#run(tokens.slice(start, start + CHUNK), action, choosesTokens);
    }
    return /** @type {StepOutput} */ (output);
  }

  /** Frees the sessions and the cache. */
  async close() {
    this.closed = true;
    await this.#last;
    this.cache.release();
    this.tokens = [];
    await this.graphs.release();
  }

  /**
   * @param {number[]} ids
   * @param {Action} action
   * @param {boolean} choosesTokens whether it is a decode step that reads part of the old tokens
   * @returns {Promise<StepOutput>}
   */
  async #run(ids, action, choosesTokens) {
    const { config } = this.bundle;
    const { model, kv } = config;
    const variant = /** @type {Variant} */ (config.variants.get(action.variant));
    const { counts, choosesChannels } = activeChannels(variant, model);
    const graph = await this.graphs.open(variant, choosesTokens, choosesChannels);
    const past = this.length;
    const pages = action.pages(past, kv.page_size);
    const layers = Array.from({ length: model.num_layers }, (_, layer) => layer);
    const { ort } = this.runtime;
    const int64 = (/** @type {number[]} */ values, /** @type {number[]} */ shape = [values.length]) =>
      new ort.Tensor("int64", BigInt64Array.from(values, BigInt), shape);
    const feeds = {
      ...this.cache.feeds(),
      input_ids: int64(ids, [1, ids.length]),
      past_length: int64([past]),
      total_length: new ort.Tensor("int32", Int32Array.of(past + ids.length), [1]),
      num_logits: int64([1]),
      kv_pages: int64(choosesTokens ? layers.map((layer) => (kv.dense_layers.includes(layer) ? ALL_PAGES : pages)) : []),
      ...Object.fromEntries(CHANNEL_INPUTS.map((name, i) => [name, int64(choosesChannels ? counts[i] : [])])),
    };
    const fetches = ["logits", "hidden_states", ...this.cache.outputs];
    const results = await this.runtime.run(graph.file, graph.session, this.#known(graph, feeds), fetches);
    const logits = /** @type {Float32Array} */ (await results.logits.getData());
    const hidden = /** @type {Float32Array} */ (await results.hidden_states.getData());
    const distribution = new Distribution(logits.subarray(logits.length - model.vocab_size));
    if (!distribution.finite || !hidden.every(Number.isFinite)) {
      for (const name of this.cache.outputs) if (results[name].location === "gpu-buffer") results[name].dispose();
      const what = `${this.bundle.name}: variant ${action.variant} gave non-finite numbers at token ${past}`;
      throw new NumericError(`${what}; check the bundle with \`sol-rt verify\``);
    }
    this.cache.adopt(results);
    this.tokens.push(...ids);
    return { distribution, hidden: hidden.slice(hidden.length - model.hidden_size) };
  }

  /**
   * The feeds that the session has inputs for: what a graph does not read may have been dropped from it.
   * @param {OpenGraph} graph
   * @param {Record<string, any>} feeds
   */
  #known(graph, feeds) {
    return Object.fromEntries(graph.session.inputNames.map((name) => [name, feeds[name]]));
  }
}

/**
 * A variant's active channels, an array for each of CHANNEL_INPUTS, and whether some are inactive.
 * @param {Variant} variant
 * @param {ModelDims} model
 */
function activeChannels(variant, model) {
  const most = channels(model);
  // a count of 0 stands for all channels, which saves sorting
  const counts = CHANNEL_INPUTS.map((name) => variant[name].map((count) => (count === most[name] ? 0 : count)));
  return { counts, choosesChannels: counts.some((row) => row.some((count) => count > 0)) };
}
