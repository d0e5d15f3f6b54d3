/** What a screen reader hears: whole sentences of an answer, a few at a time, and how it ended. */

const LEAST = 120; // characters that are said at once
const KEPT = 12; // entries that stay in the log

/** Says text in the region `spoken`, which is a log. */
export class Speech {
  #held = "";

  constructor(spoken) {
    this.spoken = spoken;
  }

  /** Takes text as it comes; says it at the end of a sentence. */
  add(text) {
    this.#held += text;
    if (this.#held.length < LEAST) return;
    const end = Math.max(...[". ", "! ", "? ", ":\n", ".\n", "\n\n"].map((mark) => this.#held.lastIndexOf(mark)));
    if (end < 0) return;
    this.say(this.#held.slice(0, end + 1));
    this.#held = this.#held.slice(end + 1);
  }

  /** Says what is left of an answer, and `words` after it. */
  end(words) {
    this.say(this.#held);
    this.#held = "";
    this.say(words);
  }

  /** Says something at once. */
  say(words) {
    if (words.trim() === "") return;
    const entry = document.createElement("p");
    entry.textContent = words;
    this.spoken.append(entry);
    while (this.spoken.childElementCount > KEPT) this.spoken.firstElementChild.remove();
  }
}
