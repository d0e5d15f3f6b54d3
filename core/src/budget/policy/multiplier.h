// The Lagrange multiplier: what the policy's logits are charged for a dense step's cost, so that the budget is held (docs/reference/decode-loop.md).
#pragma once

#include <cstddef>
#include <deque>
#include <utility>
#include <vector>

#include "budget/hull/lower_hull.h"

namespace sol_rt {

// Computes the multiplier for each step, in logits for each dense step of cost.
//
// Draw a step's actions as points (cost, logit). Under a multiplier, the best action is the corner of their upper hull at which the edges begin to
// rise less steeply than the multiplier. So the multiplier at which the last 64 steps cost the target on average is found like this: take all their
// edges, the steepest first, until the cost that the target leaves over the cheapest actions is spent.
class Multiplier {
 public:
  // The multiplier for a step of `count` actions, which counts among the last ones from now on. `target` is the cost that the step should aim for;
  // costs are in dense steps.
  double At(const double* logits, const double* costs, size_t count, double target);

 private:
  using Edge = std::pair<double, double>;  // minus its slope (logits for each dense step of cost), and its width (dense steps)
  struct Step {
    double least;  // cost of the cheapest action
    std::vector<Edge> edges;
  };
  double Between(size_t count) const;  // a number with `count` of the edges' slopes below it and the others above it

  std::deque<Step> steps_;
  std::vector<Edge> edges_;  // of all these steps, the steepest first
  std::vector<Point> corners_;
};

}  // namespace sol_rt
