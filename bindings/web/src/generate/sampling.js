/** Picks the next token from logits, in the order of docs/reference/decode-loop.md section 5. */
import { RandomWords, TOKENS } from "../philox.js";
import { noisyArgmax } from "./gumbel.js";

/** @import {Distribution} from "../engine/distribution.js" */
/** @import {GenerationConfig} from "./generation_config.js" */

const LARGEST_LOGIT = 1e30;
const TINY = 1.1754943508222875e-38;
const HUGE = 3.4028234663852886e38;
const f32 = Math.fround;

/**
 * Draws tokens by the settings of a generation. A draw depends on seed, position and scores alone, not on the draws before
 * it. But a sampler counts its tokens for the penalties, so each generation has its own.
 */
export class Sampler {
  #random;
  /** @type {Map<number, number>} */
  #counts = new Map();

  /**
   * @param {GenerationConfig} config
   * @param {number} vocabSize
   */
  constructor(config, vocabSize) {
    this.config = config;
    this.vocabSize = vocabSize;
    this.greedy = !config.do_sample || config.temperature === 0;
    this.#random = new RandomWords(config.seed, TOKENS);
  }

  /**
   * Picks a token: its id, and its log-probability in nats under the raw distribution.
   * @param {Distribution} distribution
   * @param {number[]} history tokens of the prompt and the text so far; their number is the position of the token, on
   *   which the noise depends
   */
  sample(distribution, history) {
    const scores = this.#changed(distribution.logits, history);
    let token = distribution.top;
    if (!this.greedy) token = this.#drawn(scores, history.length);
    else if (scores !== distribution.logits) token = largest(scores);
    this.#counts.set(token, (this.#counts.get(token) ?? 0) + 1);
    return { token, logprob: distribution.logProbability(token) };
  }

  /**
   * The logits after bias and penalties.
   * @param {Float32Array} logits
   * @param {number[]} history
   */
  #changed(logits, history) {
    const { logit_bias, repetition_penalty, presence_penalty, frequency_penalty } = this.config;
    const counts = presence_penalty !== 0 || frequency_penalty !== 0;
    const biased = [...logit_bias.values()].some((bias) => bias !== 0);
    if (repetition_penalty === 1 && !biased && !(counts && this.#counts.size > 0)) return logits;
    const scores = logits.slice();
    if (biased) for (const [token, bias] of logit_bias) scores[token] += f32(bias);
    if (repetition_penalty !== 1) {
      const factor = normal(repetition_penalty);
      for (const token of new Set(history)) {
        const changed = f32(scores[token] < 0 ? scores[token] * factor : scores[token] / factor);
        scores[token] = Math.min(Math.max(changed, -LARGEST_LOGIT), LARGEST_LOGIT);
      }
    }
    if (counts) {
      for (const [token, count] of this.#counts) scores[token] += f32(-(presence_penalty + frequency_penalty * count));
    }
    return scores;
  }

  /**
   * @param {Float32Array} scores
   * @param {number} position
   */
  #drawn(scores, position) {
    const { tokens, values } = this.#candidates(scores);
    return noisyArgmax(tokens, values, this.#random, position);
  }

  /**
   * The tokens that may be drawn, null for all, and their scores after the temperature, less the largest.
   * @param {Float32Array} scores
   */
  #candidates(scores) {
    const { top_k, top_p, min_p } = this.config;
    const scaled = this.#scaled(scores);
    /** @type {number[] | null} */
    let tokens = null;
    if (top_k > 0 && top_k < this.vocabSize) {
      const least = scaled.slice().sort()[scaled.length - top_k]; // tokens that tie with the last of the k stay
      tokens = [];
      for (let token = 0; token < scaled.length; token++) if (scaled[token] >= least) tokens.push(token);
    }
    const most = scaled[largest(scaled)];
    const values = (tokens === null ? scaled : picked(scaled, tokens)).map((value) => value - most);
    if (top_p === 1 && !min_p) return { tokens, values };
    const weights = values.map((value) => Math.exp(value));
    let kept = [];
    for (let i = 0; i < weights.length; i++) kept.push(i);
    if (top_p < 1) {
      kept.sort((a, b) => weights[b] - weights[a]);
      const wanted = weights.reduce((a, b) => a + b, 0) * top_p;
      let [count, mass] = [0, 0];
      while (count < kept.length && (count === 0 || mass < wanted)) mass += weights[kept[count++]];
      kept.length = count;
    }
    if (min_p) kept = kept.filter((i) => weights[i] >= f32(min_p));
    const all = tokens;
    return { tokens: all === null ? kept : kept.map((i) => all[i]), values: picked(values, kept) };
  }

  /** @param {Float32Array} scores */
  #scaled(scores) {
    const { temperature } = this.config;
    if (temperature === 1) return scores;
    const top = scores[largest(scores)];
    const divisor = normal(temperature);
    if (Math.abs(top) < LARGEST_LOGIT * temperature) return scores.map((score) => score / divisor);
    return scores.map((score) => f32(score - top) / divisor); // the quotient would overflow
  }
}

/**
 * @param {Float32Array} values
 * @param {number[]} places
 */
function picked(values, places) {
  const found = new Float32Array(places.length);
  for (let i = 0; i < places.length; i++) found[i] = values[places[i]];
  return found;
}

/** @param {Float32Array} scores */
function largest(scores) {
  let top = 0;
  for (let i = 1; i < scores.length; i++) if (scores[i] > scores[top]) top = i;
  return top;
}

/**
 * A positive setting as the nearest normal number of float32, so that one may divide by it.
 * @param {number} value
 */
function normal(value) {
  return f32(Math.min(Math.max(value, TINY), HUGE));
}
