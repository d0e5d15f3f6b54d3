/** The engine: runs the graphs of the bundle on one KV cache, as the core says. */
import { BusyError, NumericError, ProviderError } from "../errors.js";
import { Graphs } from "./graphs.js";
import { KvCache } from "./kv_cache.js";
import { breathe } from "./runtime.js";

/** @import {Bundle} from "../bundle/bundle.js" */
/** @import {Variant} from "../bundle/config.js" */
/** @import {Run} from "../core/core_model.js" */
/** @import {OpenGraph} from "./graphs.js" */
/** @import {Runtime} from "./runtime.js" */

const CHUNK = 128;
const CHANNEL_INPUTS = /** @type {const} */ (["active_up", "active_down", "active_qkv", "active_o"]);

/**
 * The result of a run: logits after the last token, [vocab], and the output of the final norm there, [hidden].
 * @typedef {{logits: Float32Array, hidden: Float32Array}} StepOutput
 */

/** Runs a bundle's variants on one KV cache. */
export class Engine {
  /** The generation that the cache is of: a newer one takes it over. @type {object | null} */
  owner = null;
  closed = false;
  /** The run in progress, or the last one. @type {Promise<unknown>} */
  #last = Promise.resolve();

  /**
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   * @param {Graphs} graphs
   * @param {"float16" | "float32"} dtype type of the cache
   */
  constructor(bundle, runtime, graphs, dtype) {
    this.bundle = bundle;
    this.runtime = runtime;
    this.graphs = graphs;
    const onGpu = runtime.provider === "webgpu";
    this.cache = new KvCache(runtime.ort, bundle.config.model, bundle.config.kv, dtype, onGpu);
  }

  /**
   * Opens the graphs of the dense action and of prompts. Others are opened when an action first needs them.
   * @param {Bundle} bundle
   * @param {Runtime} runtime
   * @param {string} prefill tag or variant of the action that runs prompts
   */
  static async open(bundle, runtime, prefill) {
    const { kv, variants, dense } = bundle.config;
    if (kv.dtype !== "float16") {
      const next = "export the bundle with --kv float16";
      throw new ProviderError(`provider ${runtime.provider}: has no operators for a cache in ${kv.dtype}; ${next}`);
    }
    const [ofDense, ofPrompts] = [dense, prefill].map((tag) => /** @type {Variant} */ (variants.get(variantOf(tag))));
    const graphs = new Graphs(bundle, runtime);
    try {
      const { dtype } = await graphs.open(ofDense, false, false);
      await graphs.open(ofPrompts, false, ofPrompts.channel_density < 1);
      return new Engine(bundle, runtime, graphs, dtype);
    } catch (error) {
      await graphs.release();
      throw error;
    }
  }

  /** Takes the engine over. @param {object} owner */
  take(owner) {
    this.owner = owner;
  }

  /** Resolves when the run in progress, which ends after its chunk, no longer changes the cache. */
  async settled() {
    await this.#last;
  }

  /** Throws BusyError if the model is closed. */
  requireOpen() {
    if (this.closed) throw new BusyError("this model is closed; load the bundle again");
  }

  /**
   * Throws BusyError if a newer owner has taken the engine over, or the model is closed.
   * @param {object} owner
   */
  requireTurn(owner) {
    this.requireOpen();
    if (this.owner === owner) return;
    const why = "this generation was interrupted by another one on the same model";
    throw new BusyError(`${why}; finish or close one first`);
  }

  /**
   * Appends tokens to the cache. One token is a decode step; several run in chunks with attention to all tokens.
   * @param {object} owner who has taken the engine over; if another one does, this call ends with a BusyError
   * @param {Run} run
   * @param {AbortSignal} [signal]
   * @returns {Promise<StepOutput>}
   */
  forward(owner, run, signal) {
    const output = this.#forward(owner, run, signal);
    this.#last = output.catch(() => undefined);
    return output;
  }

  /**
   * @param {object} owner
   * @param {Run} run
   * @param {AbortSignal} [signal]
   * @returns {Promise<StepOutput>}
   */
  async #forward(owner, run, signal) {
    const { tokens, past } = run;
    const choosesTokens = tokens.length === 1 && !run.action.startsWith("k100");
    await this.cache.grow(past + tokens.length, choosesTokens);
    /** @type {StepOutput | null} */
    let output = null;
    for (let start = 0; start < tokens.length; start += CHUNK) {
      await breathe();
      signal?.throwIfAborted();
      this.requireTurn(owner);
      output = await this.#run(run, past + start, tokens.slice(start, start + CHUNK), choosesTokens);
    }
    this.requireTurn(owner);
    return /** @type {StepOutput} */ (output);
  }

  /** Frees the sessions and the cache. */
  async close() {
    this.closed = true;
    await this.#last;
    this.cache.release();
    await this.graphs.release();
  }

  /**
   * @param {Run} run
   * @param {number} past tokens in the cache
   * @param {number[]} ids tokens of the run that come next
   * @param {boolean} choosesTokens whether it is a decode step that reads part of the old tokens
   * @returns {Promise<StepOutput>}
   */
  async #run({ action, kv_pages: pages, channels }, past, ids, choosesTokens) {
    const { model, variants } = this.bundle.config;
    const choosesChannels = channels.some((row) => row.some((count) => count > 0n));
    const graph = await this.graphs.open(/** @type {Variant} */ (variants.get(variantOf(action))), choosesTokens, choosesChannels);
    const { ort } = this.runtime;
    const int64 = (/** @type {BigInt64Array} */ values, /** @type {number[]} */ shape = [values.length]) => new ort.Tensor("int64", values, shape);
    const none = new BigInt64Array();
    const feeds = {
      ...this.cache.feeds(),
      input_ids: int64(BigInt64Array.from(ids, BigInt), [1, ids.length]),
      past_length: int64(BigInt64Array.of(BigInt(past))),
      total_length: new ort.Tensor("int32", Int32Array.of(past + ids.length), [1]),
      num_logits: int64(BigInt64Array.of(1n)),
      kv_pages: int64(choosesTokens ? pages : none),
      ...Object.fromEntries(CHANNEL_INPUTS.map((name, i) => [name, int64(choosesChannels ? channels[i] : none)])),
    };
    const fetches = ["logits", "hidden_states", ...this.cache.outputs];
    const results = await this.runtime.run(graph.file, graph.session, this.#known(graph, feeds), fetches);
    const all = /** @type {Float32Array} */ (await results.logits.getData());
    const states = /** @type {Float32Array} */ (await results.hidden_states.getData());
    const [logits, hidden] = [all.subarray(all.length - model.vocab_size), states.slice(states.length - model.hidden_size)];
    if (!logits.every(Number.isFinite) || !states.every(Number.isFinite)) {
      for (const name of this.cache.outputs) if (results[name].location === "gpu-buffer") results[name].dispose();
      const what = `${this.bundle.name}: variant ${variantOf(action)} gave non-finite numbers at token ${past}`;
      throw new NumericError(`${what}; check the bundle with \`sol-rt verify\``);
    }
    this.cache.adopt(results);
    return { logits, hidden };
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

/** The variant in the tag of an action, `s050-q4` of `k030-s050-q4`. @param {string} tag */
function variantOf(tag) {
  return tag.slice(tag.indexOf("s"));
}
