/** Ends a text before a stop string, even if the stop string arrives in pieces. */

/** Passes text through until a stop string appears. Holds back text that may be the beginning of one. */
export class StopStrings {
  #held = "";

  /** @param {string[]} strings non-empty ones */
  constructor(strings) {
    this.strings = strings;
  }

  /**
   * Adds text. Returns the text that may be shown now, and whether a stop string was found.
   * @param {string} added
   * @returns {[string, boolean]}
   */
  feed(added) {
    const text = this.#held + added;
    const found = this.strings.map((string) => text.indexOf(string)).filter((at) => at >= 0);
    if (found.length > 0) {
      this.#held = "";
      return [text.slice(0, Math.min(...found)), true];
    }
    const keep = Math.max(0, ...this.strings.map((string) => overlap(text, string)));
    this.#held = text.slice(text.length - keep);
    return [text.slice(0, text.length - keep), false];
  }

  /** The text that is still held back. */
  flush() {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

/**
 * Length of the longest suffix of `text` that `string` begins with; shorter than `string` itself.
 * @param {string} text
 * @param {string} string
 */
function overlap(text, string) {
  for (let length = Math.min(text.length, string.length - 1); length > 0; length--) {
    if (text.endsWith(string.slice(0, length))) return length;
  }
  return 0;
}
