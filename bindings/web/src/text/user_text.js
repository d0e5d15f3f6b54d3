/**
 * Keeps the special tokens that a user types from becoming control tokens.
 *
 * The content of messages is text, whatever it says. So before a template is rendered, one character of every special
 * token in the messages is replaced by a mark: a character of a private-use plane that the messages do not have. The
 * end of a text gets a mark where it may begin a special token, and the beginning where it may end one, because a
 * template may join texts. So does U+FEFF, which is white space to JavaScript, and would be stripped, but not to Python.
 *
 * A template may also rewrite texts, so that other characters become a special token. So it renders a second conversation,
 * in which every character of the contents is another one: `withoutContent`. Its special tokens are the template's own. A
 * prompt that has others is refused. What a template writes of a message's other fields is not checked in this way.
 */
import { UsageError } from "../errors.js";

const FIRST_MARK = 0xf0000;
const LAST_MARK = 0x10ffff;
const NOTHING = "\ue000"; // a private-use character of another plane
const VISIBLE = /[^\s\x1c-\x1f\x85]|\ufeff/gu; // to Python

/** Marks special tokens in the values of a rendering. */
export class UserText {
  /** @type {Map<string, string>} */
  #marks = new Map();
  #next = FIRST_MARK;
  /** @type {Set<number>} */
  #taken = new Set();

  /**
   * @param {Iterable<string>} special the tokenizer's special tokens as text; case makes no difference
   * @param {unknown} values what the template will see, made of strings, numbers, arrays and objects
   */
  constructor(special, values) {
    this.tokens = [...new Set([...special].filter((token) => token !== "").map((token) => token.toLowerCase()))];
    this.longest = Math.max(0, ...this.tokens.map((token) => token.length));
    const escaped = this.tokens.map((token) => token.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    // a look-ahead finds tokens that overlap, too
    this.pattern = this.tokens.length > 0 ? new RegExp(`(?=${escaped.join("|")})`, "giu") : null;
    for (const text of texts(values)) {
      for (const character of text) {
        const code = /** @type {number} */ (character.codePointAt(0));
        if (code >= FIRST_MARK) this.#taken.add(code);
      }
    }
    /** `values` with marks. @type {any} */
    this.marked = this.#replaced(values);
    this.originals = new Map([...this.#marks].map(([character, mark]) => [mark, character]));
  }

  /**
   * The text without marks, as the messages had it.
   * @param {string} text
   */
  restored(text) {
    return Array.from(text, (character) => this.originals.get(character) ?? character).join("");
  }

  /**
   * @param {any} value
   * @returns {any}
   */
  #replaced(value) {
    if (typeof value === "string") return this.#withMarks(value);
    if (Array.isArray(value)) return value.map((item) => this.#replaced(item));
    if (value === null || typeof value !== "object") return value;
    return Object.fromEntries(Object.entries(value).map((pair) => this.#replaced(pair)));
  }

  /** @param {string} text */
  #withMarks(text) {
    /** @type {Set<number>} */
    const places = new Set();
    for (const found of text.matchAll(/\ufeff/g)) places.add(found.index);
    for (const found of this.pattern === null ? [] : text.matchAll(this.pattern)) places.add(found.index);
    // templates strip texts before they join them
    const [left, right] = [text.length - text.trimStart().length, text.trimEnd().length];
    const [end, beginning] = [text.slice(Math.max(left, right - this.longest), right), text.slice(left, left + this.longest)];
    if (this.tokens.some((token) => endsWithin(end.toLowerCase(), token))) places.add(right - 1);
    if (this.tokens.some((token) => beginsWithin(beginning.toLowerCase(), token))) places.add(left);
    let marked = "";
    let at = 0;
    for (const character of text) {
      const inside = places.has(at) || (character.length === 2 && places.has(at + 1));
      marked += inside ? this.#mark(character) : character;
      at += character.length;
    }
    return marked;
  }

  /** @param {string} character */
  #mark(character) {
    let mark = this.#marks.get(character);
    if (mark === undefined) {
      while (this.#taken.has(this.#next)) this.#next += 1;
      if (this.#next > LAST_MARK) {
        const got = "a special token beside all characters from U+F0000 to U+10FFFF";
        throw new UsageError(`messages: got ${got}; leave out some of these characters, which have no meaning`);
      }
      mark = String.fromCodePoint(this.#next++);
      this.#marks.set(character, mark);
    }
    return mark;
  }
}

/**
 * The messages with all characters of their contents but white space replaced by one that means nothing.
 * @template {object} T
 * @param {T[]} messages
 * @returns {T[]}
 */
export function withoutContent(messages) {
  return messages.map((message) => ("content" in message ? { ...message, content: blank(message.content) } : message));
}

/**
 * @param {any} value
 * @returns {any}
 */
function blank(value) {
  if (typeof value === "string") return value.replaceAll(VISIBLE, NOTHING);
  if (Array.isArray(value)) return value.map(blank);
  if (value === null || typeof value !== "object") return value;
  // the type of a part decides what a template does with it
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, key === "type" ? item : blank(item)]));
}

/**
 * True if the end of a text is the beginning of a token, but not all of it.
 * @param {string} text
 * @param {string} token
 */
function endsWithin(text, token) {
  for (let size = 1; size < token.length; size++) if (text.endsWith(token.slice(0, size))) return true;
  return false;
}

/**
 * True if the beginning of a text is the end of a token, but not all of it.
 * @param {string} text
 * @param {string} token
 */
function beginsWithin(text, token) {
  for (let size = 1; size < token.length; size++) if (text.startsWith(token.slice(-size))) return true;
  return false;
}

/**
 * Every string in a value, keys included.
 * @param {any} value
 * @returns {Generator<string>}
 */
function* texts(value) {
  if (typeof value === "string") yield value;
  else if (Array.isArray(value)) for (const item of value) yield* texts(item);
  else if (value !== null && typeof value === "object") for (const pair of Object.entries(value)) yield* texts(pair);
}
