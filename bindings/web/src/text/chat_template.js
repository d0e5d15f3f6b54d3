/** A model's chat template, rendered by `@huggingface/jinja`. */
import { Template } from "@huggingface/jinja";

import { BundleError, SolError, UsageError, oneLine } from "../errors.js";
import { BoundedInterpreter } from "./bounded_interpreter.js";

export const FILE = "chat_template.jinja";
export const CONFIG_FILE = "tokenizer_config.json";
const LONGEST = 1 << 18; // characters of a template's source; usual ones have some thousands
const LONGEST_BLANK = 200; // characters of white space in a row, over which the library's search takes quadratic time

/** A compiled template and the special tokens that it may name. */
export class ChatTemplate {
  /**
   * Compiles a template. Throws SolError if it does not parse, or is too long.
   * @param {string} source
   * @param {Record<string, string>} variables values that every rendering sees, such as `bos_token`
   */
  constructor(source, variables) {
    this.variables = variables;
    if (source.length > LONGEST) throw failed(`got ${source.length} characters, expected at most ${LONGEST}`);
    if (new RegExp(`\\s{${LONGEST_BLANK + 1}}`).test(source)) {
      throw failed(`got more than ${LONGEST_BLANK} characters of white space in a row, expected fewer`);
    }
    try {
      this.template = new Template(source);
    } catch (error) {
      throw failed(error);
    }
  }

  /**
   * Reads a model's chat template.
   * @param {string} bundle the bundle's name, for errors
   * @param {string | null} template text of `chat_template.jinja`
   * @param {string | null} tokenizerConfig text of `tokenizer_config.json`
   */
  static of(bundle, template, tokenizerConfig) {
    let config;
    try {
      config = tokenizerConfig === null ? {} : JSON.parse(tokenizerConfig);
    } catch {
      throw new BundleError(`${bundle}/${CONFIG_FILE}`, "", "unreadable JSON", "a JSON object");
    }
    const source = template ?? defaultTemplate(config.chat_template);
    if (!source) {
      throw new UsageError(`${bundle}: this model has no chat template; generate from a plain prompt instead`);
    }
    return new ChatTemplate(source, specialTokens(config));
  }

  /**
   * Renders a conversation as a prompt, which ends where the assistant's answer begins. Throws SolError where the template
   * fails, takes more than 1 s, or writes more than 4 times the conversation's characters and 262,144 more.
   * @param {{role: string, content: unknown}[]} messages
   * @returns {string}
   */
  render(messages) {
    const values = { tools: null, documents: null, ...this.variables, messages, add_generation_prompt: true };
    try {
      return new BoundedInterpreter(values).render(this.template);
    } catch (error) {
      throw failed(error);
    }
  }
}

/** @param {unknown} error */
function failed(error) {
  return new SolError(`chat template: ${oneLine(error)}; correct ${FILE} or generate from a plain prompt`);
}

/**
 * The template in `tokenizer_config.json`, which holds one text, or a list of named texts with one `default`.
 * @param {unknown} templates
 */
function defaultTemplate(templates) {
  if (typeof templates === "string") return templates;
  if (!Array.isArray(templates)) return "";
  return templates.findLast((item) => item?.name === "default")?.template ?? "";
}

/**
 * Special tokens such as `bos_token`. Each is a text, or an object with the text under `content`.
 * @param {Record<string, any>} config
 */
function specialTokens(config) {
  /** @type {Record<string, string>} */
  const found = {};
  for (const [name, value] of Object.entries(config)) {
    const text = typeof value === "object" ? value?.content : value;
    if (name.endsWith("_token") && typeof text === "string") found[name] = text;
  }
  return found;
}
