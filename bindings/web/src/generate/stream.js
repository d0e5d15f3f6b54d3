/** A running generation: the core says what to run and picks the tokens, the engine runs it. */
import { checkedBudget } from "./options.js";

/** @import {CoreSession} from "../core/core_model.js" */
/** @import {Engine} from "../engine/engine.js" */
/** @import {PolicySession} from "../engine/policy_session.js" */
/** @import {Settings} from "./options.js" */

/**
 * One generated token.
 * @typedef {object} GeneratedToken
 * @property {number} token its id
 * @property {string} text the text that became certain with it; the pieces of all tokens joined are the whole text
 * @property {string} action tag of the action that computed the distribution it was drawn from; for the first token that of
 *   the prompt's run
 * @property {number} logprob nats, under the raw distribution
 * @property {number} cost bytes that its decode step cost, the policy's run included; 0 for the first token
 * @property {number} relative_cost the same in dense steps
 * @property {number} achieved_budget cost of all decode steps so far / their dense cost
 * @property {number} requested_budget the budget asked for, over all steps so far, or what the request came to
 * @property {number} ms milliseconds since the token before; for the first token, since the prompt's run began
 * @property {"stop" | "length" | null} finish_reason on the last token `stop` (end token or stop string) or `length`
 */

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

/** A generation to iterate over: `for await (const token of stream)`. */
export class Stream {
  #steps;
  #session;
  #engine;
  #policy;
  #signal;
  /** @type {number | null} */
  #budget;
  /** @type {GeneratedToken[]} */
  #given = [];
  /** @type {ReturnType<CoreSession["result"]>} */
  #result;

  /**
   * Begins the generation; one that ran on the same model ends.
   * @param {CoreSession} session
   * @param {Engine} engine
   * @param {() => Promise<PolicySession>} policy opens the policy's session
   * @param {{prompt: number[], settings: Settings, reuse: boolean, signal?: AbortSignal}} run
   */
  constructor(session, engine, policy, { prompt, settings, reuse, signal }) {
    this.#session = session;
    this.#engine = engine;
    this.#policy = policy;
    this.#signal = signal;
    this.#budget = /** @type {number | undefined} */ (settings.numbers.budget) ?? null;
    engine.take(this);
    session.start(prompt, settings, reuse);
    this.#result = session.result();
    this.#steps = this.#run();
  }

  [Symbol.asyncIterator]() {
    return this.#steps;
  }

  /** The budget that was asked for last; null if none was. */
  get budget() {
    return this.#budget;
  }

  /**
   * Holds another budget from the next step on. Throws UsageError for a value that is no share from 0 to 1, under axis
   * targets, and where the schedule fixes the action.
   */
  set budget(budget) {
    const wanted = checkedBudget(budget);
    this.#engine.requireTurn(this);
    this.#session.setBudget(wanted);
    this.#budget = wanted;
  }

  /** Ends the generation; the model is then ready for the next one. */
  async close() {
    await this.#steps.return(undefined);
  }

  /** Result of the tokens so far. @returns {Generation} */
  get result() {
    /** @type {Record<string, number>} */
    const actions = {};
    for (const { action } of this.#given.slice(1)) actions[action] = (actions[action] ?? 0) + 1;
    return {
      ...this.#result,
      text: this.#given.map((token) => token.text).join(""),
      tokens: this.#given.map((token) => token.token),
      actions,
      finish_reason: this.#given.at(-1)?.finish_reason ?? "closed",
    };
  }

  /** @returns {AsyncGenerator<GeneratedToken, void, void>} */
  async *#run() {
    const [session, engine, signal] = [this.#session, this.#engine, this.#signal];
    try {
      await engine.settled();
      for (;;) {
        signal?.throwIfAborted();
        engine.requireTurn(this);
        const question = session.beginPolicy();
        if (question !== null) session.endPolicy(await this.#asked(question));
        const { logits, hidden } = await engine.forward(this, session.beginStep(), signal);
        signal?.throwIfAborted();
        const token = session.endStep(logits, hidden);
        this.#given.push(token);
        this.#result = session.result();
        yield token;
        if (token.finish_reason !== null) return;
      }
    } finally {
      if (engine.owner === this && !engine.closed) session.stop();
    }
  }

  /** @param {import("../core/core_model.js").PolicyRun} question */
  async #asked(question) {
    try {
      return await (await this.#policy()).decide(question);
    } finally {
      this.#engine.requireTurn(this); // a policy that was released meanwhile fails, and this says why
    }
  }
}
