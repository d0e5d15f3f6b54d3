/** The distribution of the next token: the softmax sums of a step's logits, computed once for all who need them. */

/** The probabilities of the next token. */
export class Distribution {
  /** @param {Float32Array} logits [vocab] */
  constructor(logits) {
    this.logits = logits;
    let top = 0;
    let finite = true;
    for (let i = 0; i < logits.length; i++) {
      const value = logits[i];
      if (!(Math.abs(value) < Infinity)) finite = false;
      if (value > logits[top]) top = i;
    }
    /** True if all logits are finite. Every other property is valid only then. */
    this.finite = finite;
    /** The likeliest token; the first one if several are. */
    this.top = top;
    let [total, moment] = [0, 0];
    const largest = logits[top];
    for (let i = 0; i < logits.length; i++) {
      const centred = logits[i] - largest;
      const weight = Math.exp(centred);
      total += weight;
      moment += weight * centred;
    }
    this.total = total;
    this.moment = moment;
  }

  /** Probability of the likeliest token. */
  get topProbability() {
    return 1 / this.total;
  }

  /** Probability of the likeliest token minus that of the second likeliest; 1 in a vocabulary of one token. */
  get margin() {
    let second = -Infinity;
    for (let i = 0; i < this.logits.length; i++) {
      if (i !== this.top && this.logits[i] > second) second = this.logits[i];
    }
    return -Math.expm1(second - this.logits[this.top]) / this.total;
  }

  /** Entropy of the distribution, in nats. */
  get entropy() {
    return Math.log(this.total) - this.moment / this.total;
  }

  /**
   * Log-probability of a token, in nats.
   * @param {number} token
   */
  logProbability(token) {
    return this.logits[token] - (this.logits[this.top] + Math.log(this.total));
  }
}
