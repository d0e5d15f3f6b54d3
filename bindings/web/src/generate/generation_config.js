/** The settings of a generation, under Hugging Face's names: how tokens are picked and when the text ends. */
import { BundleError, UsageError, brief } from "../errors.js";

/**
 * Settings of one generation. A sampling setting that is 1, 0 or null changes nothing. docs/reference/decode-loop.md section 5.
 * @typedef {object} GenerationConfig
 * @property {number} max_new_tokens tokens to generate at most
 * @property {boolean} do_sample draw from the distribution; false takes the likeliest token
 * @property {number} temperature divides the logits; 0 takes the likeliest token
 * @property {number} top_k sample among this many likeliest tokens; 0 for all
 * @property {number} top_p sample among the likeliest tokens that together hold this probability
 * @property {number | null} min_p drop tokens less likely than this share of the likeliest one
 * @property {number} repetition_penalty divides the logits of tokens that occurred; over 0
 * @property {number} presence_penalty subtracted from the logits of tokens that were generated; -2 to 2
 * @property {number} frequency_penalty subtracted for each time that a token was generated; -2 to 2
 * @property {Map<number, number>} logit_bias added to the logits, by token id; -100 to 100
 * @property {string[]} stop_strings end before any of these appears
 * @property {number | bigint | null} seed of sampling and, where a call gives it, of the schedule `random`; null draws a
 *   fresh one
 * @property {number[]} eos_token_id tokens that end the text
 */

/** @type {Omit<GenerationConfig, "eos_token_id">} */
const DEFAULTS = {
  max_new_tokens: 256,
  do_sample: false,
  temperature: 1,
  top_k: 50,
  top_p: 1,
  min_p: null,
  repetition_penalty: 1,
  presence_penalty: 0,
  frequency_penalty: 0,
  logit_bias: new Map(),
  stop_strings: [],
  seed: null,
};

export const SETTINGS = [...Object.keys(DEFAULTS), "eos_token_id"];

/**
 * The model's own defaults: its `generation_config.json`, if it has one, and the config's end tokens.
 * @param {number[]} eosTokenIds
 * @param {string | null} text the file's text
 * @param {string} path the file's place, for errors
 * @returns {GenerationConfig}
 */
export function modelDefaults(eosTokenIds, text, path) {
  const config = { ...DEFAULTS, eos_token_id: eosTokenIds };
  if (text === null) return config;
  let raw;
  try {
    raw = JSON.parse(text);
  } catch {
    throw new BundleError(path, "", "unreadable JSON", "a JSON object");
  }
  if (raw === null || typeof raw !== "object" || Array.isArray(raw)) {
    throw new BundleError(path, "", brief(raw), "a JSON object");
  }
  try {
    return updated(config, Object.fromEntries(Object.entries(raw).filter(([name]) => SETTINGS.includes(name))));
  } catch (error) {
    if (!(error instanceof UsageError)) throw error;
    throw new BundleError(path, "", error.message, "settings in range");
  }
}

/**
 * A copy with some settings changed; null and undefined leave a setting as it is. Throws UsageError for bad values.
 * @param {GenerationConfig} config
 * @param {Record<string, unknown>} changes
 * @returns {GenerationConfig}
 */
export function updated(config, changes) {
  /** @type {Record<string, unknown>} */
  const given = {};
  for (const [name, value] of Object.entries(changes)) {
    if (!SETTINGS.includes(name)) {
      throw new UsageError(`generation setting ${brief(name)}: unknown; known: ${SETTINGS.join(", ")}`);
    }
    if (value !== null && value !== undefined) given[name] = checked(name, value);
  }
  return { ...config, ...given };
}

/**
 * @param {string} name
 * @param {any} value
 */
function checked(name, value) {
  const refused = (/** @type {string} */ expected) =>
    new UsageError(`generation setting ${name}: got ${brief(value)}, expected ${expected}`);
  const isNumber = typeof value === "number" && Number.isFinite(value);
  const isCount = (/** @type {any} */ item) => Number.isSafeInteger(item) && item >= 0;
  switch (name) {
    case "stop_strings": {
      const strings = typeof value === "string" ? [value] : value;
      if (Array.isArray(strings) && strings.every((item) => typeof item === "string" && item !== "")) return strings;
      throw refused("non-empty strings");
    }
    case "eos_token_id": {
      const ids = typeof value === "number" ? [value] : value;
      if (Array.isArray(ids) && ids.every(isCount)) return ids;
      throw refused("token ids");
    }
    case "do_sample":
      if (typeof value === "boolean") return value;
      throw refused("true or false");
    case "logit_bias": {
      const biases = new Map();
      if (typeof value !== "object") throw refused("a bias for each token id, as in {50256: -100}");
      for (const [token, bias] of value instanceof Map ? value : Object.entries(value)) {
        if (!isCount(Number(token))) throw refused("token ids");
        if (!(typeof bias === "number" && Math.abs(bias) <= 100)) throw refused("numbers from -100 to 100");
        biases.set(Number(token), bias);
      }
      return biases;
    }
    case "presence_penalty":
    case "frequency_penalty":
      if (isNumber && Math.abs(value) <= 2) return value;
      throw refused("a number from -2 to 2");
    case "seed":
      if (isCount(value) || (typeof value === "bigint" && value >= 0n)) return value;
      throw refused("a whole number from 0");
    case "max_new_tokens":
    case "top_k": {
      const low = name === "max_new_tokens" ? 1 : 0;
      if (isCount(value) && value >= low) return value;
      throw refused(`a whole number from ${low}`);
    }
    default:
      if (!isNumber || value < 0) throw refused("a number from 0");
      if ((name === "top_p" || name === "min_p") && value > 1) throw refused("a number from 0 to 1");
      if (name === "repetition_penalty" && value === 0) throw refused("a number over 0");
      return value;
  }
}
