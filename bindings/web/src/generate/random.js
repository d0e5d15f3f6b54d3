/** NumPy's `default_rng`: SeedSequence and PCG64, so that a seed gives the same tokens on every host. */

const MASK32 = 0xffffffffn;
const MASK64 = (1n << 64n) - 1n;
const MASK128 = (1n << 128n) - 1n;
const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;

/** NumPy's SeedSequence: turns a seed of any size into well-mixed words. */
class SeedSequence {
  /** @param {bigint} seed from 0 */
  constructor(seed) {
    /** @type {number[]} */
    const words = [];
    for (let rest = seed; rest > 0n || words.length === 0; rest >>= 32n) words.push(Number(rest & MASK32));
    let constant = 0x43b0d7e5;
    const mixed = (/** @type {number} */ value) => {
      value = (value ^ constant) >>> 0;
      constant = Math.imul(constant, 0x931e8875) >>> 0;
      value = Math.imul(value, constant) >>> 0;
      return (value ^ (value >>> 16)) >>> 0;
    };
    const joined = (/** @type {number} */ x, /** @type {number} */ y) => {
      const result = (Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y)) >>> 0;
      return (result ^ (result >>> 16)) >>> 0;
    };
    this.pool = [0, 1, 2, 3].map((i) => mixed(words[i] ?? 0));
    for (let from = 0; from < 4; from++) {
      for (let to = 0; to < 4; to++) if (from !== to) this.pool[to] = joined(this.pool[to], mixed(this.pool[from]));
    }
    for (const word of words.slice(4)) {
      for (let to = 0; to < 4; to++) this.pool[to] = joined(this.pool[to], mixed(word));
    }
  }

  /**
   * The first words of 32 bits.
   * @param {number} count
   */
  words(count) {
    let constant = 0x8b51f9dd;
    return Array.from({ length: count }, (_, i) => {
      let value = (this.pool[i % 4] ^ constant) >>> 0;
      constant = Math.imul(constant, 0x58f38ded) >>> 0;
      value = Math.imul(value, constant) >>> 0;
      return (value ^ (value >>> 16)) >>> 0;
    });
  }
}

/**
 * The first 32-bit word of a seed's SeedSequence.
 * @param {number | bigint} seed
 */
export function seedSequenceWord(seed) {
  return new SeedSequence(BigInt(seed)).words(1)[0];
}

/** The generator PCG64. */
export class Random {
  #state = 0n;
  #increment = 0n;

  /** @param {number | bigint | null} seed from 0; null draws a fresh one */
  constructor(seed) {
    const given = seed === null ? fresh() : BigInt(seed);
    const words = new SeedSequence(given).words(8).map(BigInt);
    const [a, b, c, d] = [0, 2, 4, 6].map((i) => words[i] | (words[i + 1] << 32n));
    this.#increment = ((((c << 64n) | d) << 1n) | 1n) & MASK128;
    this.#advance();
    this.#state = (this.#state + ((a << 64n) | b)) & MASK128;
    this.#advance();
  }

  /** A number from 0 to below 1. */
  next() {
    return Number(this.#word() >> 11n) * 2 ** -53;
  }

  #advance() {
    this.#state = (this.#state * MULTIPLIER + this.#increment) & MASK128;
  }

  #word() {
    this.#advance();
    const [high, low] = [this.#state >> 64n, this.#state & MASK64];
    const [mixed, turns] = [high ^ low, this.#state >> 122n];
    return ((mixed >> turns) | (mixed << ((64n - turns) & 63n))) & MASK64;
  }
}

/** A seed that nobody knows. */
export function fresh() {
  const words = globalThis.crypto.getRandomValues(new Uint32Array(1));
  return BigInt(words[0]);
}
