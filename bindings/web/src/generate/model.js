/** `SolModel`: a bundle ready to generate. The budget is an argument of every call, and may change while text streams. */
import { AxisController, Controller } from "../budget/controller.js";
import { BytesCost } from "../budget/costs.js";
import { Hull } from "../budget/hull.js";
import { ActionLosses } from "../budget/losses.js";
import { defaultSchedule, isConstant, makeSchedule, scheduleActions } from "../budget/schedules/schedule.js";
import { Bundle } from "../bundle/bundle.js";
import { prefillAction } from "../bundle/config.js";
import { Engine } from "../engine/engine.js";
import { PolicySession } from "../engine/policy_session.js";
import { Runtime } from "../engine/runtime.js";
import { UsageError, brief } from "../errors.js";
import { withoutContent } from "../text/user_text.js";
import { Stream } from "./decoder.js";
import { SETTINGS, modelDefaults, updated } from "./generation_config.js";

/** @import {OpenOptions} from "../bundle/bundle.js" */
/** @import {BundleLocation} from "../bundle/source.js" */
/** @import {RuntimeOptions} from "../engine/runtime.js" */
/** @import {ChatTemplate} from "../text/chat_template.js" */
/** @import {Tokenizer} from "../text/tokenizer.js" */
/** @import {Generation, GeneratedToken} from "./decoder.js" */
/** @import {GenerationConfig} from "./generation_config.js" */

const DEFAULT_MAX_LOSS = 0.005;
const KEEP_LOSS = ["hull", "sol"];

/** @typedef {{role: string, content: unknown}} Message */
/**
 * Text, token ids, or chat messages.
 * @typedef {string | number[] | Message[]} Prompt
 */

/**
 * Request for decode steps: at most one of a budget, axis targets and a loss (docs/reference/glossary.md, "The dial").
 * @typedef {object} Dial
 * @property {number} [budget] share of the dense cost, 0 to 1; 1 is exactly dense. If nothing is asked for, `max_loss` is
 *   0.005 where the bundle's losses were measured, else the steps are dense
 * @property {string} [schedule] `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`
 * @property {number} [kv_density] mean share of old cached tokens that attention reads
 * @property {number} [channel_density] mean share of the layers' weights that are read
 * @property {number} [bits] mean weight bits
 * @property {number} [max_loss] share by which perplexity may rise, for example 0.01
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

  /**
   * @param {Bundle} bundle
   * @param {Engine} engine
   * @param {Tokenizer} tokenizer
   * @param {GenerationConfig} defaults
   */
  constructor(bundle, engine, tokenizer, defaults) {
    this.bundle = bundle;
    this.engine = engine;
    this.tokenizer = tokenizer;
    this.defaults = defaults;
    this.cost = new BytesCost(bundle.config);
    this.losses = new ActionLosses(bundle.config);
    const actions = scheduleActions(bundle.config, "hull", false);
    /** @type {Hull | null} */
    this.hull = this.losses.measured ? new Hull(actions, this.cost, this.losses) : null;
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
    const bundle = await Bundle.open(location, options);
    const { model } = bundle.config;
    if (max_context !== undefined && !(Number.isInteger(max_context) && max_context > 0)) {
      throw new UsageError(`max_context: got ${brief(max_context)}, expected 1 or more tokens`);
    }
    const promptAction = prefillAction(bundle.config, prefill);
    const tokenizer = await bundle.tokenizer();
    const file = "generation_config.json";
    const defaults = modelDefaults(model.eos_token_ids, await bundle.text(file), `${bundle.name}/${file}`);
    const needsFloat16 = ![...bundle.config.files.keys()].some((name) => name.endsWith(".webgpu.onnx"));
    const runtime = await Runtime.open({ provider, threads, ort, needsFloat16 });
    const maxContext = Math.min(model.max_context, max_context ?? model.max_context);
    const engine = await Engine.open(bundle, runtime, maxContext, promptAction);
    bundle.options = { ...options, signal: undefined }; // it ends the load, not what a generation reads later
    return new SolModel(bundle, engine, tokenizer, defaults);
  }

  /** `wasm`, `webgpu` or `cpu`. */
  get provider() {
    return this.engine.runtime.provider;
  }

  /**
   * Starts a generation. Iterate over it for its tokens; set its `budget` while it runs.
   *
   * Throws UsageError and ContextError at the first token, NumericError and SolError while it runs.
   * @param {Prompt} prompt
   * @param {StreamOptions} [options] the dial, settings of the run, and settings of generation under Hugging Face's names
   * @returns {Promise<Stream>}
   */
  async stream(prompt, options = {}) {
    const { signal, reuse_cache = isChat(prompt), parse_special = false, ...rest } = options;
    const settings = Object.fromEntries(Object.entries(rest).filter(([name]) => SETTINGS.includes(name)));
    const dial = checkedDial(Object.fromEntries(Object.entries(rest).filter(([name]) => !SETTINGS.includes(name))));
    const config = updated(this.defaults, settings);
    const beyond = [...config.logit_bias.keys()].find((token) => token >= this.bundle.config.model.vocab_size);
    if (beyond !== undefined) throw new UsageError(`logit bias: got token ${beyond}, which the vocabulary lacks`);
    const tokens = await this.#tokens(prompt, parse_special);
    const { name, controller } = this.#controller(dial);
    const spec = this.bundle.config.policy;
    const policy = spec === null ? null : { spec, open: () => this.#policySession() };
    const variants = [...this.bundle.config.variants.keys()];
    const seed = /** @type {number | bigint | null} */ (settings.seed ?? null); // the model's own is of sampling only
    const schedule = makeSchedule(name, controller, { seed, policy, hull: this.hull, variants });
    return new Stream(this.engine, controller, schedule, {
      prompt: tokens, config, tokenizer: this.tokenizer, reuse: reuse_cache, signal,
    });
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
    this.engine.owner = null;
    await this.engine.close();
    this.bundle.forgetWeights();
    await this.#policy?.then((policy) => policy.release(), () => undefined);
    this.#policy = null;
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
    const { vocab_size } = this.bundle.config.model;
    let tokens;
    if (typeof prompt === "string") {
      tokens = prompt === "" ? [] : this.tokenizer.encode(prompt, { parseSpecial });
    } else if (isChat(prompt)) {
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
      tokens = this.tokenizer.encodeRendered(rendered, user);
    } else {
      tokens = [...prompt];
      const bad = tokens.findIndex((token) => !Number.isInteger(token) || token < 0 || token >= vocab_size);
      if (bad >= 0) {
        throw new UsageError(`prompt: got token ${brief(tokens[bad])} at place ${bad}, expected 0 to ${vocab_size - 1}`);
      }
    }
    if (tokens.length === 0) throw new UsageError("prompt: got an empty one, expected at least one token");
    return tokens;
  }

  /** @param {Dial} dial */
  #controller(dial) {
    const { config } = this.bundle;
    const { kv_density = null, channel_density = null, bits = null } = dial;
    const axes = { kv_density, channel_density, bits };
    const hasAxes = Object.values(axes).some((value) => value !== null);
    const name = dial.schedule ?? defaultSchedule(config, dial.budget ?? 1, hasAxes);
    const wishes = [
      ["budget", dial.budget !== undefined && dial.budget < 1],
      ["kv_density, channel_density and bits", hasAxes],
      ["max_loss", dial.max_loss !== undefined],
    ].flatMap(([wish, given]) => (given ? [wish] : []));
    if (wishes.length > 1) throw new UsageError(`${wishes.join(" and ")} contradict each other: give one of them`);
    if (isConstant(name) && wishes.length > 0) {
      throw new UsageError(`schedule ${name}: fixes the action; leave out budget, kv_density, channel_density, bits and max_loss`);
    }
    let { budget, max_loss } = dial;
    if (budget === undefined && wishes.length === 0 && this.hull !== null && KEEP_LOSS.includes(name)) {
      max_loss = DEFAULT_MAX_LOSS;
    }
    budget ??= 1;
    if (max_loss !== undefined && dial.schedule !== undefined && !KEEP_LOSS.includes(name)) {
      throw new UsageError(`max_loss: the schedule ${name} keeps no loss; leave out the schedule, or give a budget`);
    }
    const { hull } = this;
    if (max_loss !== undefined && hull === null) {
      const next = "leave it out, or export the model with calibration";
      throw new UsageError(`max_loss: no losses of this bundle's actions were measured; ${next}`);
    }
    const actions = scheduleActions(config, name, hasAxes);
    const policyCost = name === "sol";
    if (hasAxes) return { name, controller: new AxisController(actions, this.cost, axes, policyCost) };
    const nats = max_loss === undefined ? null : Math.log1p(max_loss);
    const budgetAt = nats === null || hull === null ? null : (/** @type {number} */ context) => hull.costAt(nats, context);
    return { name, controller: new Controller(actions, this.cost, budget, { budgetAt, policyCost }) };
  }
}

const RANGES = /** @type {Record<string, [number, number, string]>} */ ({
  budget: [0, 1, "a share of the dense cost from 0 to 1"],
  max_loss: [0, 10, "a rise of perplexity from 0 to 10, such as 0.01"],
  kv_density: [0, 1, "a share from 0 to 1"],
  channel_density: [0, 1, "a share from 0 to 1"],
  bits: [0, 8, "a number of bits"],
});

/**
 * @param {Record<string, unknown>} given
 * @returns {Dial}
 */
function checkedDial(given) {
  const known = [...Object.keys(RANGES), "schedule"];
  /** @type {Record<string, unknown>} */
  const dial = {};
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (name === "tokens_per_second") {
      throw new UsageError("tokens_per_second: no times are measured in a browser; give a budget or max_loss");
    }
    if (!known.includes(name)) {
      throw new UsageError(`option ${brief(name)}: unknown; known: ${[...known, "signal", ...SETTINGS].join(", ")}`);
    }
    if (name === "schedule") {
      if (typeof value !== "string") throw new UsageError(`schedule: got ${brief(value)}, expected a name`);
    } else {
      const [low, high, expected] = RANGES[name];
      if (!(typeof value === "number" && value >= low && value <= high)) {
        throw new UsageError(`${name}: got ${brief(value)}, expected ${expected}`);
      }
    }
    dial[name] = value;
  }
  return dial;
}

/**
 * @param {Prompt} prompt
 * @returns {prompt is Message[]}
 */
function isChat(prompt) {
  return Array.isArray(prompt) && prompt.length > 0 && typeof prompt[0] === "object";
}
