// The lower hull of a bundle's actions where they run: which actions to mix at a budget, and which budget a loss takes.
//
// The points are (relative cost, expected loss) of the measured actions. Two actions in turn reach every point on the line between them, so the lower
// convex hull of the points is the best that fixed mixes can reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "budget/cost/step_costs.h"
#include "budget/hull/losses.h"

namespace sol_rt {

struct Corner {
  size_t place;  // of the action in the hull's actions
  double cost;   // relative, in dense steps
  double loss;   // expected added loss over dense, nats per token
};

class Hull {
 public:
  // `actions` are what may be mixed, the dense action among them, each once.
  Hull(std::vector<Action> actions, const CostModel& cost, ActionLosses losses);
  // The corners at a context, from the cheapest action to dense; costs rise. Between the action of least loss and dense nothing is gained; dense ends
  // the list all the same, so that every budget up to 1 can be spent. Valid until the next call.
  const std::vector<Corner>& Corners(int64_t context);
  // Relative cost of the cheapest mix that loses at most `loss` nats per token; dense's if none does.
  double CostAt(double loss, int64_t context);
  // Expected loss of the mix of this relative cost; the cheapest corner's below its cost.
  double LossAt(double cost, int64_t context);

 private:
  void Compute(int64_t first);

  std::vector<Action> actions_;
  ActionCosts costs_;
  ActionLosses losses_;
  size_t dense_;
  int64_t first_ = -1;            // the first context of the block that the members are of
  std::vector<Corner> members_;   // corners in the middle of the block
  std::vector<double> relative_;  // costs at the block's contexts, [kCostBlock, A]
  int64_t last_ = -1;             // the context that the corners are of
  std::vector<Corner> corners_;
};

}  // namespace sol_rt
