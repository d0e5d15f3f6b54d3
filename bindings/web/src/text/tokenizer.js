/** Turns text into tokens and back, by the core, and keeps what users write in messages from becoming special tokens. */
import { UsageError } from "../errors.js";
import { UserText } from "./user_text.js";

/** @import {CoreModel} from "../core/core_model.js" */

const bytes = new TextEncoder();

/** The bundle's `tokenizer.json`. */
export class Tokenizer {
  /**
   * @param {CoreModel} core
   * @param {any} json the file's content, which the core has checked
   * @param {number[]} endIds tokens that end a text; added tokens among them count as special
   */
  constructor(core, json, endIds) {
    this.core = core;
    /** @type {{id: number, content: string, special: boolean}[]} */
    const added = json.added_tokens ?? [];
    /** Special tokens as text. */
    this.special = added.filter((token) => (token.special || endIds.includes(token.id)) && token.content).map((token) => token.content);
    const shown = this.special.map((content) => content.trim()).filter(Boolean).sort((a, b) => b.length - a.length);
    this.finder = shown.length > 0 ? new RegExp(shown.map(escaped).join("|"), "gu") : null;
  }

  /**
   * The token ids of a text, with what the model wants around it.
   * @param {string} text
   * @param {boolean} [parseSpecial] whether special tokens that are written in the text become those tokens
   */
  encode(text, parseSpecial = true) {
    if (!text.isWellFormed()) throw new UsageError("prompt: not valid Unicode text; give it as UTF-8");
    return this.core.encode(text, parseSpecial);
  }

  /**
   * The text of token ids; special tokens give none.
   * @param {number[]} ids
   */
  decode(ids) {
    return this.core.decode(ids);
  }

  /**
   * Messages for a chat template, with marks at the special tokens that they contain as text.
   * @param {unknown} messages
   */
  markedMessages(messages) {
    return new UserText(this.special, messages);
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
   */
  encodeRendered(rendered, user) {
    if (!rendered.isWellFormed()) throw new UsageError("prompt: not valid Unicode text; give it as UTF-8");
    /** @type {[number, number][]} */
    const stretches = [];
    let [text, at, done] = ["", 0, 0];
    for (let i = 0; i < rendered.length; ) {
      const character = String.fromCodePoint(/** @type {number} */ (rendered.codePointAt(i)));
      const original = user.originals.get(character);
      if (original !== undefined) {
        at += bytes.encode(rendered.slice(done, i)).length;
        text += rendered.slice(done, i) + original;
        stretches.push([at, (at += bytes.encode(original).length)]);
        done = i + character.length;
      }
      i += character.length;
    }
    return this.core.encodeRendered(text + rendered.slice(done), stretches);
  }
}

/** @param {string} text */
function escaped(text) {
  return text.replaceAll(/[.*+?^${}()|[\]\\]/g, "\\$&");
}
