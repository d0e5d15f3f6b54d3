/** The decode loop: prefill the prompt; then, token by token, sample, pick an action, run it and charge it. */
import { isConstant } from "../budget/schedules/schedule.js";
import { ContextError, UsageError } from "../errors.js";
import { TextWriter } from "../text/text_writer.js";
import { Sampler } from "./sampling.js";

/** @import {AxisController, Controller} from "../budget/controller.js" */
/** @import {Schedule} from "../budget/schedules/schedule.js" */
/** @import {Engine, StepOutput} from "../engine/engine.js" */
/** @import {Tokenizer} from "../text/tokenizer.js" */
/** @import {GenerationConfig} from "./generation_config.js" */

/**
 * One generated token.
 * @typedef {object} GeneratedToken
 * @property {number} token its id
 * @property {string} text the text that became certain with it; the pieces of all tokens joined are the whole text
 * @property {string} action tag of the action that computed the distribution it was drawn from; for the first token that of
 *   the prompt's run
 * @property {number} logprob nats, under the raw distribution
 * @property {number} cost what that decode step cost, in bytes, the policy's run included; 0 for the first token
 * @property {number} relative_cost the same in dense steps
 * @property {number} achieved_budget cost of all decode steps so far / their dense cost
 * @property {number | null} requested_budget the budget asked for, over all steps so far; null under axis targets
 * @property {number} ms milliseconds since the token before; for the first token, since the call
 * @property {"stop" | "length" | null} finish_reason on the last token `stop` (end token or stop string) or `length`
 */

/** One run of decode steps: the schedule picks the action, the engine runs it, the controller charges it. */
class Decoder {
  #steps = 0;
  /** A budget that the steps from the next one on are to hold. @type {number | null} */
  #wanted = null;
  /** @type {StepOutput | null} */
  output = null;

  /**
   * @param {Engine} engine
   * @param {Controller | AxisController} controller a fresh one
   * @param {Schedule} schedule a fresh one, made for that controller
   */
  constructor(engine, controller, schedule) {
    this.engine = engine;
    this.controller = controller;
    this.schedule = schedule;
  }

  /** The budget that the next step holds; null under a loss and under axis targets. */
  get budget() {
    return this.#wanted ?? this.controller.budget;
  }

  /** A step in progress goes on as it began. Throws UsageError for a budget that the controller does not take. */
  set budget(budget) {
    this.controller.checkBudget(budget);
    this.#wanted = budget;
  }

  /**
   * Runs the prompt and returns how many tokens were run. With `reuse`, tokens that the cache begins with are not run
   * again; the last token always is.
   * @param {number[]} tokens
   * @param {boolean} reuse
   * @param {AbortSignal} [signal]
   */
  async prefill(tokens, reuse, signal) {
    const { engine } = this;
    await engine.take(this);
    engine.requireTurn(this);
    let cached = 0;
    if (reuse) while (cached < tokens.length - 1 && tokens[cached] === engine.tokens[cached]) cached += 1;
    engine.truncate(cached);
    this.output = await engine.forward(this, tokens.slice(cached), engine.prefill, signal);
    engine.requireTurn(this);
    return tokens.length - cached;
  }

  /**
   * Processes one token. `output` then holds the distribution of the next token.
   * @param {number} token
   * @param {AbortSignal} [signal]
   */
  async step(token, signal) {
    const { engine, controller } = this;
    engine.requireTurn(this);
    if (this.#wanted !== null) controller.setBudget(this.#wanted);
    this.#wanted = null;
    const context = engine.length;
    const { hidden, distribution } = /** @type {StepOutput} */ (this.output);
    let action;
    try {
      action = await this.schedule.choose({ context, token, hidden, distribution, step: this.#steps });
    } finally {
      engine.requireTurn(this); // a policy that was released meanwhile fails, and this says why
    }
    this.output = await engine.forward(this, [token], action, signal);
    const { cost, relative } = controller.record(action, context);
    this.#steps += 1;
    return { action, cost, relative };
  }
}

/**
 * Result of a generation.
 * @typedef {object} Generation
 * @property {string} text the generated text, without end token and stop string
 * @property {number[]} tokens generated tokens, the end token included
 * @property {string} schedule name of the schedule
 * @property {number} requested_budget the budget asked for, or what the request came to
 * @property {number} achieved_budget cost of all decode steps / their dense cost; 1 where there was none
 * @property {number} prompt_tokens tokens of the prompt
 * @property {number} cached_tokens tokens of the prompt that were still in the cache
 * @property {number} time_to_first_token_ms
 * @property {number} tokens_per_second decode steps / the seconds they took; 0 where there was none
 * @property {Record<string, number>} actions decode steps by action tag
 * @property {"stop" | "length" | "closed"} finish_reason `closed` where the caller ended it
 * @property {boolean} floored whether the budget lay below the cost of the cheapest action
 */

/** A running generation: `for await (const token of stream)`. */
export class Stream {
  #steps;
  #decoder;
  #prompt;
  #config;
  #tokenizer;
  #reuse;
  #signal;
  /** @type {GeneratedToken[]} */
  #given = [];
  #prefilled = 0;

  /**
   * @param {Engine} engine
   * @param {Controller | AxisController} controller
   * @param {Schedule} schedule
   * @param {{prompt: number[], config: GenerationConfig, tokenizer: Tokenizer, reuse: boolean, signal?: AbortSignal}} run
   */
  constructor(engine, controller, schedule, { prompt, config, tokenizer, reuse, signal }) {
    this.#decoder = new Decoder(engine, controller, schedule);
    this.#prompt = prompt;
    this.#config = config;
    this.#tokenizer = tokenizer;
    this.#reuse = reuse;
    this.#signal = signal;
    this.#steps = this.#run();
  }

  [Symbol.asyncIterator]() {
    return this.#steps;
  }

  /** The budget that the next step holds; null under a loss and under axis targets. */
  get budget() {
    return this.#decoder.budget;
  }

  /**
   * Holds another budget from the next step on. Throws UsageError for a value that is no share from 0 to 1, under axis
   * targets, and where the schedule fixes the action.
   */
  set budget(budget) {
    const { name } = this.#decoder.schedule;
    if (isConstant(name)) throw new UsageError(`budget: the schedule ${name} fixes the action`);
    this.#decoder.budget = budget;
  }

  /** Ends the generation; the model is then ready for the next one. */
  async close() {
    await this.#steps.return(undefined);
  }

  /** Result of the tokens so far. @returns {Generation} */
  get result() {
    const { controller, schedule } = this.#decoder;
    const steps = this.#given.slice(1);
    const ms = steps.reduce((sum, token) => sum + token.ms, 0);
    /** @type {Record<string, number>} */
    const actions = {};
    for (const { action } of steps) actions[action] = (actions[action] ?? 0) + 1;
    const fixed = schedule.name.startsWith("fixed:");
    return {
      text: this.#given.map((token) => token.text).join(""),
      tokens: this.#given.map((token) => token.token),
      schedule: schedule.name,
      requested_budget: (fixed ? null : controller.requested) ?? controller.achieved,
      achieved_budget: controller.achieved,
      prompt_tokens: this.#prompt.length,
      cached_tokens: this.#given.length > 0 ? this.#prompt.length - this.#prefilled : 0,
      time_to_first_token_ms: this.#given[0]?.ms ?? 0,
      tokens_per_second: ms > 0 ? (1000 * steps.length) / ms : 0,
      actions,
      finish_reason: this.#given[this.#given.length - 1]?.finish_reason ?? "closed",
      floored: controller.floored,
    };
  }

  /** @returns {AsyncGenerator<GeneratedToken, void, void>} */
  async *#run() {
    const decoder = this.#decoder;
    const { controller, engine } = decoder;
    const prompt = this.#prompt;
    const config = this.#config;
    if (prompt.length > engine.maxContext) {
      const expected = `expected at most ${engine.maxContext}, the model's context`;
      throw new ContextError(`prompt: got ${prompt.length} tokens, ${expected}; shorten it`);
    }
    // the last token is returned without being processed, so it needs no room
    const limit = Math.min(config.max_new_tokens, engine.maxContext - prompt.length + 1);
    const sampler = new Sampler(config, engine.bundle.config.model.vocab_size);
    const writer = new TextWriter(this.#tokenizer, prompt, config);
    const history = [...prompt];
    let clock = performance.now();
    this.#prefilled = await decoder.prefill(prompt, this.#reuse, this.#signal);
    let record = { action: engine.prefill, cost: 0, relative: 0 };
    for (;;) {
      this.#signal?.throwIfAborted();
      const { token, logprob } = sampler.sample(/** @type {StepOutput} */ (decoder.output).distribution, history);
      history.push(token);
      let { text, stopped } = writer.add(token);
      const ended = !stopped && history.length - prompt.length === limit;
      if (ended) text += writer.flush();
      /** @type {GeneratedToken} */
      const generated = {
        token,
        text,
        action: record.action.tag,
        logprob,
        cost: record.cost,
        relative_cost: record.relative,
        achieved_budget: controller.achieved,
        requested_budget: controller.requested,
        ms: performance.now() - clock,
        finish_reason: stopped ? "stop" : ended ? "length" : null,
      };
      this.#given.push(generated);
      yield generated;
      if (generated.finish_reason !== null) return;
      clock = performance.now(); // the caller's time since the token does not count
      record = await decoder.step(token, this.#signal);
    }
  }
}
