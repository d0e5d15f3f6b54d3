/**
 * Random numbers from a counter: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
 * 1, 2, 3", 2011). A number depends on seed, stream, position and index alone: no state is kept, and the order of the
 * draws has no effect (docs/reference/decode-loop.md section 5).
 */

/** Stream of the noise on tokens. */
export const TOKENS = 0;
/** Stream of the schedule `random`. */
export const SCHEDULE = 1;

const ROUNDS = 10;

/**
 * Philox4x32-10: mixes the four words of `counter` in place, under a key of two words, the lower first.
 * @param {Uint32Array} counter
 * @param {number} k
 * @param {number} m
 */
export function philox(counter, k, m) {
  let [a, b, c, d] = counter;
  for (let round = 0; round < ROUNDS; round++) {
    const first = high(a, 0xd251, 0x1f53);
    const second = high(c, 0xcd9e, 0x8d57);
    b ^= second ^ k;
    d ^= first ^ m;
    [a, b, c, d] = [b, Math.imul(c, 0xcd9e8d57), d, Math.imul(a, 0xd2511f53)];
    k = (k + 0x9e3779b9) | 0;
    m = (m + 0xbb67ae85) | 0;
  }
  counter[0] = a;
  counter[1] = b;
  counter[2] = c;
  counter[3] = d;
}

/**
 * The upper 32 bits of a word times another, which is given in halves.
 * @param {number} word
 * @param {number} upper
 * @param {number} lower
 */
function high(word, upper, lower) {
  const [w, v] = [word >>> 16, word & 0xffff];
  const middle = w * lower + ((v * lower) >>> 16); // below 2^32
  const rest = v * upper + (middle & 0xffff);
  return (w * upper + (middle >>> 16) + (rest >>> 16)) | 0;
}

/** The random words of a seed and a stream. */
export class RandomWords {
  #low;
  #high;
  #stream;
  #block = new Uint32Array(4);

  /**
   * @param {number | bigint | null} seed from 0; its lowest 64 bits count; null draws a fresh one
   * @param {number} stream TOKENS or SCHEDULE
   */
  constructor(seed, stream) {
    const given = seed === null ? globalThis.crypto.getRandomValues(new Uint32Array(1))[0] : seed;
    const key = BigInt.asUintN(64, BigInt(given));
    this.#low = Number(key & 0xffffffffn);
    this.#high = Number(key >> 32n);
    this.#stream = stream;
  }

  /**
   * The word of an index.
   * @param {number} position index of a token in its sequence, prompt included
   * @param {number} index
   */
  at(position, index) {
    this.#mix(position, index >>> 2);
    return this.#block[index & 3];
  }

  /**
   * The first `count` words of a position.
   * @param {number} position
   * @param {number} count
   */
  first(position, count) {
    const words = new Uint32Array(count);
    for (let index = 0; index < count; index += 4) {
      this.#mix(position, index >>> 2);
      for (let lane = 0; lane < 4; lane++) words[index + lane] = this.#block[lane]; // those after the end are dropped
    }
    return words;
  }

  /**
   * @param {number} position
   * @param {number} block
   */
  #mix(position, block) {
    this.#block[0] = block;
    this.#block[1] = position;
    this.#block[2] = this.#stream;
    this.#block[3] = 0;
    philox(this.#block, this.#low, this.#high);
  }
}

/**
 * A word as a number between 0 and 1; never 0 and never 1.
 * @param {number} word
 */
export function uniform(word) {
  return (word + 0.5) * 2 ** -32;
}
