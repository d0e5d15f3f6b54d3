/** A model and a session of the core: the tokenizer, and the decode loop whose graphs JavaScript runs. */
import { BundleError, SolError } from "../errors.js";
import { Memory, openCore } from "./core.js";

/** @import {Core} from "./core.js" */
/** @import {Settings} from "../generate/options.js" */

export const CONFIG_NAME = "sol_config.json";
/** Files of a bundle that the core reads, besides the config. */
export const CORE_FILES = ["tokenizer.json", "chat_segments.json", "generation_config.json"];
const ADD_SPECIAL = 1;
const PARSE_SPECIAL = 2;
const FINISHES = /** @type {const} */ ([null, "stop", "length"]);
let folders = 0;

/**
 * Tokens that the engine is to run, and how.
 * @typedef {object} Run
 * @property {number[]} tokens to append to the cache
 * @property {number} past tokens in the cache before them
 * @property {string} action tag
 * @property {BigInt64Array} kv_pages [layers]
 * @property {BigInt64Array[]} channels active_up, active_down, active_qkv and active_o, each [layers]; 0 for all channels
 */

/**
 * A run of the policy's graph.
 * @typedef {{hidden: Float32Array, token: number, scalars: Float32Array, previous: number, step: number, first: boolean}} PolicyRun
 */

/** A bundle that the core has checked. */
export class CoreModel {
  /**
   * @param {Core} core
   * @param {number} pointer
   */
  constructor(core, pointer) {
    this.core = core;
    this.pointer = pointer;
    /** Facts of the model. */
    this.info = core.borrow((memory) => {
      const info = memory.struct("sol_model_info");
      core.call("sol_model_get_info", pointer, info.pointer);
      return { maxContext: info.get("max_context"), numActions: info.get("num_actions"), hasTokenizer: info.get("has_tokenizer") === 1, dense: info.text("dense") };
    });
  }

  /**
   * Checks a bundle and reads its tokenizer and settings. Throws BundleError and UsageError.
   * @param {string} name the bundle's, for errors
   * @param {Map<string, Uint8Array>} files the config, and those of CORE_FILES that it lists
   * @param {{max_context?: number, prefill?: string | null}} options
   */
  static async load(name, files, { max_context = 0, prefill = null }) {
    const core = await openCore();
    const folder = `/bundle${++folders}`;
    core.files.mkdir(folder);
    try {
      for (const [file, content] of files) core.files.writeFile(`${folder}/${file}`, content);
      return core.borrow((memory) => {
        const options = memory.struct("sol_model_options");
        options.set("max_context", max_context);
        if (prefill !== null) options.set("prefill", memory.string(prefill));
        const place = memory.take(4);
        core.call("sol_model_load", 0, memory.string(folder), options.pointer, place);
        return new CoreModel(core, core.view.getUint32(place, true));
      });
    } catch (error) {
      if (!(error instanceof SolError)) throw error;
      const message = error.message.replaceAll(folder, name);
      throw error instanceof BundleError ? BundleError.worded(message) : new (/** @type {any} */ (error.constructor))(message);
    } finally {
      for (const file of files.keys()) if (core.files.analyzePath(`${folder}/${file}`).exists) core.files.unlink(`${folder}/${file}`);
      core.files.rmdir(folder);
    }
  }

  /**
   * Actions of the bundle: tag, cost at a context of 512 tokens in dense steps, and loss in nats; NaN if it was not measured.
   * @returns {{tag: string, relative_cost: number, loss: number}[]}
   */
  actions() {
    return this.core.borrow((memory) => {
      const info = memory.struct("sol_action_info");
      return Array.from({ length: this.info.numActions }, (_, index) => {
        this.core.call("sol_model_get_action", this.pointer, index, info.pointer);
        return { tag: info.text("tag"), relative_cost: info.get("relative_cost"), loss: info.get("loss") };
      });
    });
  }

  /**
   * Tokens of a text, with what the model wants around it.
   * @param {string} text
   * @param {boolean} parseSpecial whether special tokens that are written in the text become those tokens
   */
  encode(text, parseSpecial) {
    const flags = ADD_SPECIAL | (parseSpecial ? PARSE_SPECIAL : 0);
    return this.#encoded(text, (pointer, length, ...array) => this.core.call("sol_model_encode", this.pointer, pointer, length, flags, ...array));
  }

  /**
   * Tokens of a prompt that a chat template rendered.
   * @param {string} text
   * @param {[number, number][]} user stretches that came from messages, as begin and end in bytes of UTF-8
   */
  encodeRendered(text, user) {
    return this.#encoded(text, (pointer, length, ...array) => {
      this.core.borrow((memory) => {
        const stretches = memory.put(Uint32Array.from(user.flat()));
        this.core.call("sol_model_encode_rendered", this.pointer, pointer, length, stretches, user.length, ...array);
      });
    });
  }

  /**
   * Text of tokens; special tokens give none.
   * @param {number[]} tokens
   */
  decode(tokens) {
    return this.core.borrow((memory) => {
      const given = memory.put(Int32Array.from(tokens));
      const bytes = memory.filled(Uint8Array, (...array) => this.core.call("sol_model_decode", this.pointer, given, tokens.length, 1, ...array));
      return new TextDecoder().decode(bytes);
    });
  }

  release() {
    this.core.wasm._sol_model_release(this.pointer);
  }

  /**
   * @param {string} text
   * @param {(pointer: number, length: number, ...array: [number, number, number]) => void} encode
   * @returns {number[]}
   */
  #encoded(text, encode) {
    return this.core.borrow((memory) => {
      const bytes = new TextEncoder().encode(text);
      const pointer = memory.put(bytes);
      return [...memory.filled(Int32Array, (...array) => encode(pointer, bytes.length, ...array))];
    });
  }
}

/** A conversation of a model: the core counts its tokens and holds the dial, the engine of JavaScript has the cache. */
export class CoreSession {
  /**
   * @param {CoreModel} model
   * @param {{vocab_size: number, hidden_size: number, num_layers: number}} dims
   */
  constructor(model, dims) {
    const core = (this.core = model.core);
    this.dims = dims;
    this.memory = new Memory(core); // for what every step passes
    this.run = this.memory.struct("sol_run");
    this.policyRun = this.memory.struct("sol_policy_run");
    this.token = this.memory.struct("sol_token");
    this.resultOf = this.memory.struct("sol_result");
    this.logits = this.memory.take(4 * dims.vocab_size);
    this.hidden = this.memory.take(4 * dims.hidden_size);
    this.pointer = core.borrow((memory) => {
      const place = memory.take(4);
      core.call("sol_session_create_on", model.pointer, memory.struct("sol_host_engine").pointer, place);
      return core.view.getUint32(place, true);
    });
  }

  /** Tokens in the cache. @returns {number[]} */
  get tokens() {
    return this.core.borrow((memory) => [...memory.filled(Int32Array, (...array) => this.core.call("sol_session_tokens", this.pointer, ...array))]);
  }

  /**
   * Checks everything and begins a generation; one that was running ends. Throws UsageError and ContextError.
   * @param {number[]} prompt
   * @param {Settings} settings
   * @param {boolean} reuse whether the tokens of the prompt that the cache begins with are kept
   */
  start(prompt, settings, reuse) {
    this.core.borrow((memory) => {
      const options = memory.struct("sol_generate_options");
      this.core.wasm._sol_generate_options_init(options.pointer, options.get("size"));
      for (const [name, value] of Object.entries(settings.numbers)) options.set(name, value);
      if (settings.schedule !== null) options.set("schedule", memory.string(settings.schedule));
      if (settings.end_tokens !== null) {
        options.set("end_tokens", memory.put(Int32Array.from(settings.end_tokens)));
        options.set("num_end_tokens", settings.end_tokens.length);
      }
      if (settings.stop_strings !== null) {
        options.set("stop_strings", memory.put(Uint32Array.from(settings.stop_strings, (text) => memory.string(text))));
        options.set("num_stop_strings", settings.stop_strings.length);
      }
      if (settings.logit_bias !== null) {
        const biases = new DataView(new ArrayBuffer(8 * settings.logit_bias.size));
        for (const [i, [token, bias]] of [...settings.logit_bias].entries()) {
          biases.setInt32(8 * i, token, true);
          biases.setFloat32(8 * i + 4, bias, true);
        }
        options.set("logit_bias", memory.put(biases));
        options.set("num_logit_bias", settings.logit_bias.size);
      }
      options.set("reuse_cache", reuse ? 1 : 0);
      this.core.call("sol_session_start", this.pointer, memory.put(Int32Array.from(prompt)), prompt.length, options.pointer);
    });
  }

  /** The run of the policy that the next step needs first; null for none. @returns {PolicyRun | null} */
  beginPolicy() {
    const { core, policyRun: run } = this;
    core.call("sol_session_begin_policy", this.pointer, run.pointer);
    if (run.get("graph") === 0) return null;
    return {
      hidden: core.array(Float32Array, run.get("hidden"), run.get("hidden_size")),
      scalars: core.array(Float32Array, run.get("scalars"), run.get("num_scalars")),
      token: run.get("token"), previous: run.get("previous_action"), step: run.get("step"), first: run.get("first") === 1,
    };
  }

  /** @param {Float32Array} logits over the policy's actions */
  endPolicy(logits) {
    this.core.borrow((memory) => this.core.call("sol_session_end_policy", this.pointer, memory.put(logits), logits.length));
  }

  /** Tokens to run next: the prompt, then one at a time. @returns {Run} */
  beginStep() {
    const { core, run } = this;
    core.call("sol_session_begin_step", this.pointer, run.pointer);
    const layers = this.dims.num_layers;
    return {
      tokens: [...core.array(Int32Array, run.get("tokens"), run.get("num_tokens"))],
      past: run.get("past"),
      action: run.text("action"),
      kv_pages: core.array(BigInt64Array, run.get("kv_pages"), layers),
      channels: Array.from({ length: 4 }, (_, input) => core.array(BigInt64Array, run.get("channels") + 8 * layers * input, layers)),
    };
  }

  /**
   * Takes the results of the last token, and gives the next one.
   * @param {Float32Array} logits [vocab]
   * @param {Float32Array} hidden [hidden]
   */
  endStep(logits, hidden) {
    const { core, token } = this;
    new Float32Array(core.wasm.HEAPU8.buffer, this.logits, logits.length).set(logits);
    new Float32Array(core.wasm.HEAPU8.buffer, this.hidden, hidden.length).set(hidden);
    core.call("sol_session_end_step", this.pointer, this.logits, logits.length, this.hidden, hidden.length, token.pointer);
    return {
      token: token.get("token"),
      text: core.text(token.get("text"), token.get("text_length")),
      action: token.text("action"),
      logprob: token.get("logprob"),
      cost: token.get("cost"),
      relative_cost: token.get("relative_cost"),
      achieved_budget: token.get("achieved_budget"),
      requested_budget: token.get("requested_budget"),
      ms: token.get("milliseconds"),
      finish_reason: FINISHES[token.get("finish")],
    };
  }

  /** Result of the running or last generation. */
  result() {
    const { core, resultOf: result } = this;
    core.call("sol_session_result", this.pointer, result.pointer);
    return {
      schedule: result.text("schedule"),
      requested_budget: result.get("requested_budget"),
      achieved_budget: result.get("achieved_budget"),
      prompt_tokens: result.get("prompt_tokens"),
      cached_tokens: result.get("cached_tokens"),
      time_to_first_token_ms: result.get("time_to_first_token_ms"),
      tokens_per_second: result.get("tokens_per_second"),
      floored: result.get("floored") === 1,
    };
  }

  /** Holds another budget from the next step on. Throws UsageError. @param {number} budget */
  setBudget(budget) {
    this.core.call("sol_session_set_budget", this.pointer, budget);
  }

  /** Ends a running generation; the cache keeps what was run. */
  stop() {
    this.core.call("sol_session_stop", this.pointer);
  }

  release() {
    this.core.wasm._sol_session_release(this.pointer);
    this.memory.free();
  }
}
