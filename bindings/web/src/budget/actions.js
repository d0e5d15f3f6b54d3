/** Actions: the ways to run a decode step. An action is written as a tag, `k030-s050-q4`. */
import { UsageError, brief } from "../errors.js";

/** Mixed precision, as a number: used only to sort and average bits. Configs say `mixed`, tags `qmix`. */
export const MIXED = 5;

const TAG = /^k(\d{3})-s(\d{3})-q(\d{1,2}|[a-z]+)$/;

/** One way to run a decode step. Actions of the same tag are equal. */
export class Action {
  /**
   * @param {number} kv share of the old cached tokens that attention reads, in hundredths, 1 to 100
   * @param {number} channels share of the layers' weights that are read, in hundredths, 1 to 100
   * @param {number} bits weight bits, or MIXED
   */
  constructor(kv, channels, bits) {
    this.kv = kv;
    this.bits = bits;
    this.kv_density = kv / 100;
    this.channel_density = channels / 100;
    /** Key of the variant that runs the action, for example `s050-q4`. */
    this.variant = `s${String(channels).padStart(3, "0")}-q${bits === MIXED ? "mix" : bits}`;
    this.tag = `k${String(kv).padStart(3, "0")}-${this.variant}`;
  }

  /**
   * Reads a tag. Throws UsageError if it is malformed or out of range.
   * @param {unknown} tag
   */
  static parse(tag) {
    const match = typeof tag === "string" ? TAG.exec(tag) : null;
    const bits = match === null ? null : match[3] === "mix" ? MIXED : Number(match[3]);
    if (match === null || bits === null || Number.isNaN(bits) || (match[3] !== "mix" && String(bits) !== match[3])) {
      throw new UsageError(`action tag: got ${brief(tag)}, expected kKKK-sSSS-qB, for example k030-s050-q4`);
    }
    const [kv, channels] = [Number(match[1]), Number(match[2])];
    if (match[3] === String(MIXED)) {
      throw new UsageError(`action tag ${brief(tag)}: mixed bits are written qmix`);
    }
    if (kv < 1 || kv > 100 || channels < 1 || channels > 100 || bits < 1 || bits > 16) {
      throw new UsageError(`action tag ${brief(tag)}: densities must be 001 to 100 hundredths, bits 1 to 16 or mix`);
    }
    return new Action(kv, channels, bits);
  }

  /**
   * Number of old pages that a step reads after `context` tokens: the graph's input `kv_pages`.
   * @param {number} context
   * @param {number} pageSize
   */
  pages(context, pageSize) {
    const old = Math.ceil((context + 1) / pageSize) - 1;
    return this.kv === 100 ? old : Math.ceil((old * this.kv) / 100);
  }
}
