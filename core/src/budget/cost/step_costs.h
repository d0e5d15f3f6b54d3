// The costs of all actions at a context, computed for a block of contexts at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "budget/cost_model.h"

namespace sol_rt {

constexpr int64_t kCostBlock = 64;  // contexts

// Costs of A actions at one context, in the cost model's unit. All but `dense` include the policy's run. Views rows of a table.
struct StepCosts {
  int64_t context;          // tokens in the cache before the step
  const double* costs;      // [A]
  const double* relative;   // `costs` in dense steps, [A]
  const char* useful;       // [A], the dense action and every cheaper one; others cost more than dense for less quality
  double low, high;         // least and largest of `costs`
  double dense;             // cost of the dense step, without the policy
};

// Costs of A actions without the policy's run, row by row.
class ActionCosts {
 public:
  ActionCosts(const std::vector<Action>& actions, const CostModel& cost);
  // Costs at `count` contexts from `first` on, float64 [count, A].
  void Compute(int64_t first, int64_t count, double* costs) const;

 private:
  std::vector<CostLine> lines_;
  std::vector<int64_t> kept_;  // KV density of each action in hundredths
  std::vector<LayerKind> kinds_;
  int64_t page_size_, sinks_;
  double layers_;
  double sparse_share_;  // share of the layers that choose tokens
};

// StepCosts by context. Keeps the block of contexts that the run is in.
class StepCostTable {
 public:
  // `policy_cost` is what every step pays for the policy's run. The dense action is among `actions`.
  StepCostTable(const std::vector<Action>& actions, const CostModel& cost, double policy_cost);
  // Valid until a call for another block of contexts.
  const StepCosts& At(int64_t context);

 private:
  void Compute(int64_t first);

  ActionCosts actions_;
  size_t count_, dense_;
  std::vector<char> is_dense_;
  double policy_cost_;
  int64_t first_ = -1;
  std::vector<double> costs_, relative_;  // [kCostBlock, A]
  std::vector<char> useful_;              // [kCostBlock, A]
  std::vector<StepCosts> rows_;
};

}  // namespace sol_rt
