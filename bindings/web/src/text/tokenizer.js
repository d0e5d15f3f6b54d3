/** Turns text into tokens and back, by `@huggingface/tokenizers`. A streaming decoder returns text while tokens arrive. */
import { Tokenizer as Library } from "@huggingface/tokenizers";

import { BundleError, UsageError, brief, oneLine } from "../errors.js";
import { UserText } from "./user_text.js";

export const FILE = "tokenizer.json";
const REPLACEMENT = "\ufffd";
const UTF8_LENGTH = 4;
const CONTEXT = 6;
/** Pattern by which `ByteLevel` splits a text. */
const WORDS = String.raw`'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`;
const SPACE = /\p{White_Space}/u;

/** @typedef {{id: number, content: string, special: boolean, lstrip: boolean, rstrip: boolean}} AddedToken */

/** The bundle's `tokenizer.json`. */
export class Tokenizer {
  /** @type {Library | null} */
  #inside = null;

  /**
   * @param {any} json the file's content
   * @param {number[]} endIds tokens that end a text; added tokens among them count as special
   */
  constructor(json, endIds = []) {
    /** @type {AddedToken[]} */
    const added = (json.added_tokens ?? []).map((/** @type {AddedToken} */ token) => ({
      ...token,
      special: token.special || endIds.includes(token.id),
    }));
    this.special = new Map(added.filter((token) => token.special && token.content).map((token) => [token.id, token]));
    const pre_tokenizer = asInPython(json.pre_tokenizer ?? null);
    this.json = { ...json, pre_tokenizer, added_tokens: added, truncation: null, padding: null };
    this.withSpecial = library(this.json);
    // without special tokens in the list, those that are written in a text are plain text
    this.plainJson = { ...this.json, added_tokens: added.filter((token) => !token.special) };
    this.plain = library(this.plainJson);
    const unknown = json.model?.unk_token;
    const controls = [...this.special.values()].filter((token) => token.content !== unknown || endIds.includes(token.id));
    this.controls = new Set(controls.map((token) => token.id));
    const contents = [...this.special.values()].map((token) => token.content).sort((a, b) => b.length - a.length);
    this.splitter = contents.length > 0 ? new RegExp(`(${contents.map(escaped).join("|")})`, "u") : null;
    this.byContent = new Map([...this.special.values()].map((token) => [token.content, token]));
    const shown = contents.map((content) => content.trim()).filter(Boolean).sort((a, b) => b.length - a.length);
    this.finder = shown.length > 0 ? new RegExp(shown.map(escaped).join("|"), "gu") : null;
  }

  /**
   * Reads a bundle's tokenizer. Throws BundleError if it is unreadable or has tokens that the model does not know.
   * @param {string} text
   * @param {string} path
   * @param {number} vocabSize
   * @param {number[]} endIds
   */
  static parse(text, path, vocabSize, endIds) {
    let tokenizer;
    try {
      tokenizer = new Tokenizer(JSON.parse(text), endIds);
      tokenizer.decode(tokenizer.encode("Is it 12°? Yes!\n\tno"));
    } catch (error) {
      throw new BundleError(path, "", `an unreadable tokenizer (${oneLine(error)})`, "a tokenizers file");
    }
    const size = new Set(tokenizer.withSpecial.get_vocab(true).values()).size;
    if (size > vocabSize) {
      const hint = "export again with the model's own tokenizer";
      throw new BundleError(path, "", `${size} tokens`, `at most the model's ${vocabSize}`, hint);
    }
    return tokenizer;
  }

  /**
   * The token ids of a text.
   * @param {string} text
   * @param {{addSpecialTokens?: boolean, parseSpecial?: boolean}} [options] whether to add what the model wants around a
   *   text, and whether special tokens that are written in the text become those tokens
   * @returns {number[]}
   */
  encode(text, { addSpecialTokens = true, parseSpecial = true } = {}) {
    if (!text.isWellFormed()) throw new UsageError("prompt: not valid Unicode text; give it as UTF-8");
    const library = parseSpecial ? this.withSpecial : this.plain;
    return library.encode(text, { add_special_tokens: addSpecialTokens }).ids;
  }

  /**
   * Messages for a chat template, with marks at the special tokens that they contain as text.
   * @param {unknown} messages
   */
  markedMessages(messages) {
    return new UserText([...this.special.values()].map((token) => token.content), messages);
  }

  /**
   * The special tokens that are written in a text, in order.
   * @param {string} text
   */
  specialIn(text) {
    return this.finder === null ? [] : (text.match(this.finder) ?? []);
  }

  /**
   * The token ids of a prompt that a chat template rendered from `user.marked`. Special tokens of the template become
   * those tokens; what came from the messages is plain text.
   * @param {string} rendered
   * @param {UserText} user
   * @returns {number[]}
   */
  encodeRendered(rendered, user) {
    const pieces = this.splitter === null ? [rendered] : rendered.split(this.splitter);
    /** @type {number[]} */
    const ids = [];
    for (let i = 0; i < pieces.length; i++) {
      const token = i % 2 === 1 ? this.byContent.get(pieces[i]) : undefined;
      if (token !== undefined) {
        ids.push(token.id);
        continue;
      }
      let piece = user.restored(pieces[i]);
      if (i + 1 < pieces.length && this.byContent.get(pieces[i + 1])?.lstrip) piece = stripped(piece, 0);
      if (i > 0 && this.byContent.get(pieces[i - 1])?.rstrip) piece = stripped(piece, 1);
      if (piece === "") continue;
      for (const id of this.#plainIds(piece, i === 0)) ids.push(id); // as arguments of one call they may be too many
    }
    return ids;
  }

  /**
   * Token ids of a piece of a longer text, without special tokens.
   * @param {string} text
   * @param {boolean} first whether the text begins with the piece
   */
  #plainIds(text, first) {
    if (!text.isWellFormed()) throw new UsageError("prompt: not valid Unicode text; give it as UTF-8");
    const { ids } = (first ? this.plain : this.#withinText()).encode(text, { add_special_tokens: false });
    for (const id of ids) {
      if (!this.controls.has(id)) continue;
      const got = `text that is the special token ${brief(this.special.get(id)?.content)} to this tokenizer`;
      throw new UsageError(`messages: got ${got}; leave it out`);
    }
    return ids;
  }

  /** The tokenizer for a piece that another one precedes: some put a space before the first piece of a text only. */
  #withinText() {
    if (this.#inside === null) {
      const text = JSON.stringify(this.plainJson.pre_tokenizer ?? null);
      const never = text.replaceAll('"prepend_scheme":"first"', '"prepend_scheme":"never"');
      this.#inside = never === text ? this.plain : library({ ...this.plainJson, pre_tokenizer: JSON.parse(never) });
    }
    return this.#inside;
  }

  /**
   * The text of token ids; special tokens give none.
   * @param {number[]} ids
   * @returns {string}
   */
  decode(ids) {
    const shown = ids.filter((id) => !this.special.has(id));
    return shown.length === 0 ? "" : this.withSpecial.decode(shown, { clean_up_tokenization_spaces: false });
  }

  /**
   * A decoder for tokens that arrive one by one.
   * @param {number[]} context the prompt's tokens, which precede the stream; their text is not returned
   */
  stream(context) {
    return new TextStream(this, context);
  }
}

/** @param {string} text */
function escaped(text) {
  return text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
}

/**
 * A text without the white space at its end, or at its beginning, as Python's tokenizers take it.
 * @param {string} text
 * @param {0 | 1} side 1 for the beginning
 */
function stripped(text, side) {
  let [from, to] = [0, text.length];
  if (side === 0) while (to > from && SPACE.test(text[to - 1])) to -= 1;
  else while (from < to && SPACE.test(text[from])) from += 1;
  return text.slice(from, to);
}

/**
 * A pre-tokenizer that splits as Python's does where the library's own pattern differs: JavaScript's `\s` has U+FEFF and
 * lacks U+0085, and its `\d` has no digits but 0 to 9.
 * @param {any} pre
 * @returns {any}
 */
function asInPython(pre) {
  const split = (/** @type {string} */ Regex) => ({ type: "Split", pattern: { Regex }, behavior: "Isolated", invert: false });
  if (pre?.type === "Sequence") return { ...pre, pretokenizers: pre.pretokenizers.map(asInPython) };
  if (pre?.type === "Digits") return split(pre.individual_digits ? "\\p{N}" : "\\p{N}+");
  if (pre?.type !== "ByteLevel" || pre.use_regex === false) return pre;
  const space = { type: "Replace", pattern: { Regex: "\\A[^ ]" }, content: " $&" };
  const bytes = { ...pre, use_regex: false, add_prefix_space: false };
  return { type: "Sequence", pretokenizers: [...(pre.add_prefix_space ? [space] : []), split(WORDS), bytes] };
}

/** @param {any} json */
function library(json) {
  return new Library(json, { clean_up_tokenization_spaces: false });
}

/** Incremental decoder. Its pieces joined are the text of all tokens, and no piece ends inside a character. */
class TextStream {
  /**
   * @param {Tokenizer} tokenizer
   * @param {number[]} context
   */
  constructor(tokenizer, context) {
    this.tokenizer = tokenizer;
    this.ids = this.#tail(context);
    this.given = this.#decode().length;
    this.fresh = this.ids.length; // index of the first token whose text was not yet returned completely
  }

  /**
   * Adds a token. Returns the text that is now certain; empty while a character is incomplete.
   * @param {number} token
   */
  add(token) {
    this.ids.push(token);
    const text = this.#decode();
    if (!text.endsWith(REPLACEMENT)) return this.#giveOut(text);
    if (this.ids.length - this.fresh <= UTF8_LENGTH) return "";
    // more tokens than one character has bytes: only the last 3 replacement characters may still change
    let end = text.length;
    while (end > this.given && text[end - 1] === REPLACEMENT && text.length - end < UTF8_LENGTH - 1) end -= 1;
    const piece = text.slice(this.given, end);
    this.given = Math.max(this.given, end);
    return piece;
  }

  /** The rest of the text: the replacement character if the text stops inside a character. */
  flush() {
    return this.#giveOut(this.#decode());
  }

  /** @param {string} text */
  #giveOut(text) {
    const piece = text.slice(this.given);
    if (piece) {
      this.ids.splice(0, this.fresh);
      this.fresh = this.ids.length;
      this.given = this.#decode().length;
    }
    return piece;
  }

  #decode() {
    return this.tokenizer.decode(this.ids);
  }

  /**
   * The fewest last tokens of the context whose text starts at a character boundary.
   * @param {number[]} context
   */
  #tail(context) {
    for (let length = 1; length <= Math.min(CONTEXT, context.length); length++) {
      const tail = context.slice(context.length - length);
      const text = this.tokenizer.decode(tail);
      if (text && !text.startsWith(REPLACEMENT)) return tail;
    }
    return [];
  }
}
