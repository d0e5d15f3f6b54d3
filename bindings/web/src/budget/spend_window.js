/** The window arithmetic of both controllers: what was spent, what was allowed, and how far the two may be apart. */

const WINDOW_STEPS = 1.25;
const WINDOW_FROM = 64;
const WINDOW_GROWTH = 0.0075;

/** The spend of one quantity over the steps so far. */
export class SpendWindow {
  steps = 0;
  spent = 0;
  allowed = 0;
  full = 0;

  /** spent - allowed; negative where less was spent than allowed. */
  get deviation() {
    return this.spent - this.allowed;
  }

  /**
   * Largest allowed |deviation| after one more step, which would spend `full` if it were dense.
   * @param {number} full
   */
  halfWidth(full) {
    const count = this.steps + 1;
    return ((this.full + full) / count) * (WINDOW_STEPS + WINDOW_GROWTH * Math.max(0, count - WINDOW_FROM));
  }

  /**
   * Books one step.
   * @param {number} spent
   * @param {number} allowed
   * @param {number} full
   */
  add(spent, allowed, full) {
    this.steps += 1;
    this.spent += spent;
    this.allowed += allowed;
    this.full += full;
  }
}
