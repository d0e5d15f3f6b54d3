/** Losses: what a budget is expected to cost in quality, by what the server tells, and how it is shown. */

const LEAST = 0.002; // share of perplexity that the bar's scale tells from none
const MOST = 1; // share of perplexity at the bar's end

/** Corners of the curve whose context is nearest; none where no losses were measured. */
export function cornersAt(curves, context) {
  const far = (curve) => Math.abs(Math.log2(curve.context / Math.max(context, 1)));
  return curves.reduce((best, curve) => (best === null || far(curve) < far(best) ? curve : best), null)?.corners ?? [];
}

/** Expected loss of a budget, nats a token; null where none was measured. */
export function lossAt(corners, budget) {
  if (corners.length === 0) return null;
  const next = corners.findIndex((corner) => corner.budget >= budget);
  if (next < 0) return corners[corners.length - 1].expected_loss;
  if (next === 0) return corners[0].expected_loss;
  const [low, high] = [corners[next - 1], corners[next]];
  const share = (budget - low.budget) / (high.budget - low.budget || 1);
  return low.expected_loss + share * (high.expected_loss - low.expected_loss);
}

/** The least budget whose expected rise of perplexity is at most `share`; 1 where no losses were measured. */
export function budgetFor(corners, share) {
  for (let percent = 0; percent < 100; percent += 1) {
    const loss = lossAt(corners, percent / 100);
    if (loss !== null && percent / 100 >= corners[0].budget && Math.expm1(loss) <= share) return percent / 100;
  }
  return 1;
}

/** Place of a loss on the bar, 0 to 1: logarithmic, as quality is judged. */
export function placeOf(nats) {
  const share = Math.min(Math.max(Math.expm1(nats), 0), MOST);
  return Math.log1p(share / LEAST) / Math.log1p(MOST / LEAST);
}

/** A loss as a rise of perplexity. */
export function worded(nats) {
  const percent = 100 * Math.max(Math.expm1(nats), 0);
  return `+${percent < 9.95 ? percent.toFixed(1) : Math.min(percent, 9999).toFixed(0)}%`;
}
