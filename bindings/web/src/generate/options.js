/** Options of a generation, under Hugging Face's names, as the core takes them. The core checks ranges; kinds are checked here. */
import { UsageError, brief } from "../errors.js";

/**
 * The dial: at most one of a budget, axis targets and a loss (docs/reference/glossary.md, "The dial").
 * @typedef {object} Dial
 * @property {number} [budget] share of the dense cost, 0 to 1; 1 is exactly dense. If nothing is asked for, `max_loss` is
 *   0.005 where the bundle's losses were measured, else the steps are dense
 * @property {string} [schedule] `sol`, `hull`, `uniform`, `entropy`, `random`, `fixed:TAG` or `dense`
 * @property {number} [kv_density] mean share of old cached tokens that attention reads
 * @property {number} [channel_density] mean share of the layers' weights that are read
 * @property {number} [bits] mean weight bits
 * @property {number} [max_loss] share by which perplexity may rise, for example 0.01
 */

/**
 * Settings of one generation; by default the model's own. docs/reference/decode-loop.md section 5.
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
 * @property {Map<number, number> | Record<string, number>} logit_bias added to the logits, by token id; -100 to 100
 * @property {string | string[]} stop_strings end before any of these appears
 * @property {number | bigint | null} seed of sampling and of the schedule `random`; null draws a fresh one
 * @property {number | number[]} eos_token_id tokens that end the text
 */

/**
 * Values for `sol_generate_options`; null leaves the model's own.
 * @typedef {object} Settings
 * @property {Record<string, number | bigint>} numbers by field
 * @property {string | null} schedule
 * @property {string[] | null} stop_strings
 * @property {number[] | null} end_tokens
 * @property {Map<number, number> | null} logit_bias
 */

const NUMBERS = [
  "budget", "max_loss", "kv_density", "channel_density", "bits", "temperature", "top_p", "min_p", "repetition_penalty",
  "presence_penalty", "frequency_penalty",
];
const COUNTS = ["max_new_tokens", "top_k", "seed"]; // a negative one would be the model's own to the core
const MOST = 2 ** 31 - 1;
const KNOWN = [...NUMBERS, "schedule", ...COUNTS, "do_sample", "logit_bias", "stop_strings", "eos_token_id", "signal", "reuse_cache", "parse_special"];

/**
 * Throws UsageError for unknown options and values of another kind.
 * @param {Record<string, unknown>} given
 * @returns {Settings}
 */
export function settingsOf(given) {
  /** @type {Settings} */
  const settings = { numbers: {}, schedule: null, stop_strings: null, end_tokens: null, logit_bias: null };
  for (const [name, value] of Object.entries(given)) {
    if (value === undefined || value === null) continue;
    if (name === "tokens_per_second") {
      throw new UsageError("tokens_per_second: no times are measured in a browser; give a budget or max_loss");
    }
    if (!KNOWN.includes(name)) throw new UsageError(`option ${brief(name)}: unknown; known: ${KNOWN.join(", ")}`);
    if (NUMBERS.includes(name)) settings.numbers[name] = checked(name, value, isNumber, "a number");
    else if (COUNTS.includes(name)) settings.numbers[name] = checked(name, value, name === "seed" ? isSeed : isCount, "a whole number from 0");
    else if (name === "do_sample") settings.numbers[name] = Number(checked(name, value, (v) => typeof v === "boolean", "true or false"));
    else if (name === "schedule") settings.schedule = checked(name, value, isText, "a name");
    else if (name === "stop_strings") settings.stop_strings = checked(name, [value].flat(), (v) => v.every(isText), "non-empty strings");
    else if (name === "eos_token_id") settings.end_tokens = checked(name, [value].flat(), (v) => v.every(isCount), "token ids");
    else if (name === "logit_bias") settings.logit_bias = biases(value);
  }
  return settings;
}

/**
 * @param {string} name
 * @param {any} value
 * @param {(value: any) => boolean} isGood
 * @param {string} expected
 */
function checked(name, value, isGood, expected) {
  if (!isGood(value)) throw new UsageError(`${name}: got ${brief(value)}, expected ${expected}`);
  return value;
}

const isNumber = (/** @type {any} */ value) => typeof value === "number" && Number.isFinite(value);
const isCount = (/** @type {any} */ value) => Number.isInteger(value) && value >= 0 && value <= MOST;
const isSeed = (/** @type {any} */ value) =>
  (Number.isSafeInteger(value) && value >= 0) || (typeof value === "bigint" && value >= 0n && value < 2n ** 63n);
const isText = (/** @type {any} */ value) => typeof value === "string" && value !== "" && !value.includes("\0");

/** @param {any} value */
function biases(value) {
  const expected = "a bias from -100 to 100 for each token id, as in {50256: -100}";
  checked("logit_bias", value, (v) => typeof v === "object", expected);
  const pairs = [...(value instanceof Map ? value : Object.entries(value))].map(([token, bias]) => [Number(token), bias]);
  checked("logit_bias", pairs, (v) => v.every((/** @type {any} */ pair) => isCount(pair[0]) && isNumber(pair[1])), expected);
  return new Map(/** @type {[number, number][]} */ (pairs));
}

/**
 * A budget for a generation that runs.
 * @param {unknown} value
 * @returns {number}
 */
export function checkedBudget(value) {
  return checked("budget", value, isNumber, "a share of the dense cost from 0 to 1");
}
