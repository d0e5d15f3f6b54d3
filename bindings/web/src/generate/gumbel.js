/**
 * The Gumbel-max trick: the token with the largest `score + noise` is a draw from softmax(scores), if the noise of each
 * token is a Gumbel number of its own. The noise of a token depends on seed, position and token id alone.
 */
import { uniform } from "../philox.js";

/** @import {RandomWords} from "../philox.js" */

const SQRT_HALF = 0.7071067811865476;
const LN2 = 0.6931471805599453;
const LARGEST = 22.9;

/**
 * Draws a token from softmax(scores); of equal sums the smallest id is taken.
 * @param {number[] | null} tokens the candidates; null stands for all
 * @param {Float32Array} scores their logits after the temperature, less the largest
 * @param {RandomWords} random of the stream of tokens
 * @param {number} position index that the token will have in its sequence, prompt included
 */
export function noisyArgmax(tokens, scores, random, position) {
  const words = tokens === null ? random.first(position, scores.length) : null;
  let [best, largest] = [-1, -Infinity];
  for (let i = 0; i < scores.length; i++) {
    if (scores[i] + LARGEST < largest) continue; // whatever its noise is
    const token = tokens === null ? i : tokens[i];
    const word = words === null ? random.at(position, token) : words[i];
    if (scores[i] + upperBound(word) < largest) continue; // most end here: bounds are cheaper than logarithms
    const sum = scores[i] + gumbel(word);
    if (best >= 0 && !(sum > largest || (sum === largest && token < best))) continue;
    [best, largest] = [token, sum];
  }
  return best;
}

/**
 * -log(-log(u)) with u = (word + 0.5) / 2^32; from -3.2 to 22.9.
 * @param {number} word
 */
export function gumbel(word) {
  return -portableLog(-portableLog(uniform(word)));
}

/**
 * Natural logarithm of a positive number. It is written out in additions, multiplications and divisions, which every host
 * rounds alike; libraries differ in the last bit of theirs.
 * @param {number} value
 */
function portableLog(value) {
  let exponent = 0;
  let mantissa = value;
  for (; mantissa < SQRT_HALF; exponent--) mantissa *= 2;
  for (; mantissa >= 2 * SQRT_HALF; exponent++) mantissa /= 2;
  const share = (mantissa - 1) / (mantissa + 1); // log(mantissa) = 2 atanh(share), |share| < 0.172
  const square = share * share;
  const twice = share + share;
  let series = 0;
  for (let odd = 19; odd > 1; odd -= 2) series = square * (series + 1 / odd);
  return exponent * LN2 + (twice + twice * series);
}

/**
 * An upper bound of `gumbel(word)`: -log(-log(u)) <= -log(1 - u) <= the whole part of that in powers of two.
 * @param {number} word
 */
function upperBound(word) {
  return (Math.clz32(~word) + 1) * (LN2 * 1.000001);
}
