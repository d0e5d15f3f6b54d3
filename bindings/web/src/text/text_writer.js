/** Turns generated tokens into pieces of text, and finds where end tokens or stop strings end it. */
import { StopStrings } from "./stop_strings.js";

/** @import {GenerationConfig} from "../generate/generation_config.js" */
/** @import {Tokenizer} from "./tokenizer.js" */

/** The text of one generation, token by token. */
export class TextWriter {
  /**
   * @param {Tokenizer} tokenizer
   * @param {number[]} prompt tokens of the prompt: the first piece of text depends on the last of them
   * @param {GenerationConfig} config its end tokens and stop strings are used
   */
  constructor(tokenizer, prompt, config) {
    this.stream = tokenizer.stream(prompt);
    this.stop = new StopStrings(config.stop_strings);
    this.endTokens = new Set(config.eos_token_id);
  }

  /**
   * The text that became certain with `token`, and whether the text ends with it.
   * @param {number} token
   * @returns {{text: string, stopped: boolean}}
   */
  add(token) {
    if (this.endTokens.has(token)) return { text: this.flush(), stopped: true };
    const [text, stopped] = this.stop.feed(this.stream.add(token));
    return { text, stopped };
  }

  /** The text that was held back: an incomplete character, or what may be the beginning of a stop string. */
  flush() {
    const [text, stopped] = this.stop.feed(this.stream.flush());
    return stopped ? text : text + this.stop.flush();
  }
}
