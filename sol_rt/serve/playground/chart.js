/** The chart of an answer's steps: each step's cost, the mean so far and the budget, as shares of a dense step. */

const SHOWN = 240; // steps, the newest

/** Draws the steps into the SVG of a pane. */
export function draw(svg, steps) {
  const decoded = steps.filter((step) => step.cost !== null).slice(-SHOWN);
  const across = (index) => ((index + 0.5) * 100) / Math.max(decoded.length, 48);
  const up = (share) => 100 * (1 - Math.min(Math.max(share, 0), 1));
  const line = (of) => {
    let path = "";
    let pen = "M";
    decoded.forEach((step, index) => {
      const share = of(step);
      if (share === null || share === undefined) return void (pen = "M");
      path += `${pen}${across(index).toFixed(2)} ${up(share).toFixed(2)}`;
      pen = "L";
    });
    return path;
  };
  const dots = decoded.map((step, index) => `M${across(index).toFixed(2)} ${up(step.cost).toFixed(2)}h0`);
  svg.querySelector(".steps").setAttribute("d", dots.join(""));
  svg.querySelector(".mean").setAttribute("d", line((step) => step.achieved_budget));
  svg.querySelector(".held").setAttribute("d", line((step) => step.requested_budget));
}

/** The chart in words, for those who do not see it. */
export function inWords(steps) {
  const costs = steps.map((step) => step.cost).filter((cost) => cost !== null);
  if (costs.length === 0) return "Cost of each step: none yet";
  const percent = (share) => `${Math.round(100 * share)}%`;
  const mean = steps[steps.length - 1].achieved_budget;
  return `Cost of ${costs.length} steps, as shares of a dense step: ${percent(Math.min(...costs))} to ${percent(Math.max(...costs))}, mean ${percent(mean)}`;
}
