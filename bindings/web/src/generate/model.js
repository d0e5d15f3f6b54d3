/** `SolModel`: a bundle ready to generate. The budget is an argument of every call, and may change while text streams. */
import { Bundle } from "../bundle/bundle.js";
import { CoreModel, CoreSession } from "../core/core_model.js";
import { Engine } from "../engine/engine.js";
import { PolicySession } from "../engine/policy_session.js";
import { Runtime } from "../engine/runtime.js";
import { UsageError, brief } from "../errors.js";
import { Tokenizer } from "../text/tokenizer.js";
import { withoutContent } from "../text/user_text.js";
import { settingsOf } from "./options.js";
import { Stream } from "./stream.js";

/** @import {OpenOptions} from "../bundle/bundle.js" */
/** @import {BundleLocation} from "../bundle/source.js" */
/** @import {RuntimeOptions} from "../engine/runtime.js" */
/** @import {ChatTemplate} from "../text/chat_template.js" */
/** @import {Dial, GenerationConfig} from "./options.js" */
/** @import {Generation} from "./stream.js" */

/** @typedef {{role: string, content: unknown}} Message */
/**
 * Text, token ids, or chat messages.
 * @typedef {string | number[] | Message[]} Prompt
 */

/**
 * @typedef {object} RunOptions
 * @property {AbortSignal} [signal] ends the generation with the signal's reason, at the latest after the step in progress
 * @property {boolean} [reuse_cache] keep the tokens of the prompt that the cache begins with; by default for messages only
 * @property {boolean} [parse_special] whether special tokens that are written in a text become those tokens; in chat
 *   messages they never do
 */

/**
 * @typedef {object} ModelOptions
 * @property {number} [max_context] a cap in tokens below the model's own
 * @property {string | null} [prefill] key of the variant that runs prompts, as `s100-q4`, at some loss; by default the
 *   dense one. Its graph is loaded with the model
 */

/**
 * @typedef {Dial & RunOptions & Partial<GenerationConfig>} StreamOptions
 * @typedef {OpenOptions & RuntimeOptions & ModelOptions} LoadOptions
 */

/** A model whose compute budget is a dial. It runs one generation at a time; a newer one ends an older one. */
export class SolModel {
  /** @type {Promise<PolicySession> | null} */
  #policy = null;
  /** @type {Promise<ChatTemplate> | null} */
  #template = null;
  #core;
  #session;

  /**
   * @param {Bundle} bundle
   * @param {CoreModel} core
   * @param {Engine} engine
   * @param {Tokenizer} tokenizer
   */
  constructor(bundle, core, engine, tokenizer) {
    this.bundle = bundle;
    this.engine = engine;
    this.tokenizer = tokenizer;
    this.#core = core;
    this.#session = new CoreSession(core, bundle.config.model);
    /** Actions of the bundle, with costs at a context of 512 tokens in dense steps and losses in nats; NaN if not measured. */
    this.actions = core.actions();
  }

  /**
   * Opens a bundle: a URL, the files of a chosen folder, a folder's handle, or in Node a folder on disk.
   *
   * Throws BundleError for a bundle that is missing or damaged, ProviderError where the provider does not work here or
   * does not run the bundle, and UsageError.
   * @param {BundleLocation} location
   * @param {LoadOptions} [options]
   */
  static async load(location, { provider, threads, ort, max_context, prefill, ...options } = {}) {
    if (max_context !== undefined && !(Number.isInteger(max_context) && max_context > 0)) {
      throw new UsageError(`max_context: got ${brief(max_context)}, expected 1 or more tokens`);
    }
    if (prefill !== undefined && prefill !== null && (typeof prefill !== "string" || prefill === "")) {
      throw new UsageError(`prefill: got ${brief(prefill)}, expected one of the bundle's variants`);
    }
    const bundle = await Bundle.open(location, options);
    const core = await CoreModel.load(bundle.name, await bundle.coreFiles(), { max_context, prefill });
    /** @type {Engine | null} */
    let engine = null;
    try {
      bundle.readConfig();
      const tokenizer = new Tokenizer(core, await bundle.tokenizerJson(), bundle.config.model.eos_token_ids);
      const needsFloat16 = ![...bundle.config.files.keys()].some((name) => name.endsWith(".webgpu.onnx"));
      const runtime = await Runtime.open({ provider, threads, ort, needsFloat16 });
      engine = await Engine.open(bundle, runtime, prefill ?? bundle.config.dense);
      bundle.options = { ...options, signal: undefined }; // it ends the load, not what a generation reads later
      return new SolModel(bundle, core, engine, tokenizer);
    } catch (error) {
      await engine?.close();
      core.release();
      throw error;
    }
  }

  /** `wasm`, `webgpu` or `cpu`. */
  get provider() {
    return this.engine.runtime.provider;
  }

  /** Tokens in the cache. */
  get tokens() {
    return this.#session.tokens;
  }

  /**
   * Starts a generation, and ends one that runs. Iterate over it for its tokens; set its `budget` while it runs.
   *
   * Throws UsageError and ContextError, and while it runs NumericError and SolError.
   * @param {Prompt} prompt
   * @param {StreamOptions} [options] the dial, settings of the run, and settings of generation under Hugging Face's names
   * @returns {Promise<Stream>}
   */
  async stream(prompt, options = {}) {
    const { signal, reuse_cache = isChat(prompt), parse_special = false } = options;
    const settings = settingsOf(options);
    this.engine.requireOpen();
    const tokens = await this.#tokens(prompt, parse_special);
    this.engine.requireOpen();
    return new Stream(this.#session, this.engine, () => this.#policySession(), { prompt: tokens, settings, reuse: reuse_cache, signal });
  }

  /**
   * Runs a generation to its end; arguments and errors as in `stream`.
   * @param {Prompt} prompt
   * @param {StreamOptions} [options]
   * @returns {Promise<Generation>}
   */
  async generate(prompt, options = {}) {
    const stream = await this.stream(prompt, options);
    for await (const _ of stream);
    return stream.result;
  }

  /** Frees sessions, cache and weights. A generation that runs ends with a BusyError. */
  async close() {
    if (this.engine.closed) return;
    await this.engine.close();
    this.bundle.forgetWeights();
    await this.#policy?.then((policy) => policy.release(), () => undefined);
    this.#policy = null;
    this.#session.release();
    this.#core.release();
  }

  #policySession() {
    this.#policy ??= PolicySession.open(this.bundle, this.engine.runtime).catch((error) => {
      this.#policy = null; // the next generation tries again
      throw error;
    });
    return this.#policy;
  }

  /**
   * @param {Prompt} prompt
   * @param {boolean} parseSpecial
   */
  async #tokens(prompt, parseSpecial) {
    if (typeof prompt === "string") return prompt === "" ? [] : this.tokenizer.encode(prompt, parseSpecial);
    if (!isChat(prompt)) {
      const bad = prompt.findIndex((token) => !Number.isInteger(token) || Math.abs(token) >= 2 ** 31);
      if (bad >= 0) throw new UsageError(`prompt: got token ${brief(prompt[bad])} at place ${bad}, expected token ids`);
      return prompt;
    }
    this.#template ??= this.bundle.chatTemplate().catch((error) => {
      this.#template = null;
      throw error;
    });
    const template = await this.#template;
    for (const message of prompt) {
      if (message === null || typeof message !== "object") {
        throw new UsageError(`prompt: got ${brief(message)} among messages, expected objects with role and content`);
      }
    }
    const user = this.tokenizer.markedMessages(prompt);
    const rendered = template.render(user.marked);
    const own = this.tokenizer.specialIn(template.render(withoutContent(prompt)));
    if (JSON.stringify(this.tokenizer.specialIn(rendered)) !== JSON.stringify(own)) {
      const got = "text that the chat template turns into special tokens, or that changes which ones it writes";
      throw new UsageError(`messages: got ${got}; leave out what reads like one, or escapes one`);
    }
    return this.tokenizer.encodeRendered(rendered, user);
  }
}

/**
 * @param {Prompt} prompt
 * @returns {prompt is Message[]}
 */
function isChat(prompt) {
  return Array.isArray(prompt) && prompt.length > 0 && typeof prompt[0] === "object";
}
