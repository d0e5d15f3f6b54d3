// Costs of many actions at many contexts: CostModel::Step, without its calls.
#include "budget/cost/step_costs.h"

#include <algorithm>

namespace sol_rt {

ActionCosts::ActionCosts(const std::vector<Action>& actions, const CostModel& cost)
    : kinds_(cost.kinds()), page_size_(cost.page_size()), sinks_(cost.sinks()), layers_(static_cast<double>(cost.layers())) {
  for (const Action& action : actions) {
    lines_.push_back(cost.Line(action));
    kept_.push_back(action.kv);
  }
  sparse_share_ = 1 - static_cast<double>(cost.dense_layers()) / layers_;
}

void ActionCosts::Compute(int64_t first, int64_t count, double* costs) const {
  for (int64_t context = first; context < first + count; ++context) {
    const int64_t held = context + 1, old_pages = (held + page_size_ - 1) / page_size_ - 1;
    for (size_t index = 0; index < lines_.size(); ++index) {
      const int64_t pages = (old_pages * kept_[index] + 99) / 100;
      if (!kinds_.empty()) {
        const CacheReads reads = ReadsByWindow(kinds_, page_size_, sinks_, held, old_pages, pages);
        const double tokens = static_cast<double>(reads.tokens) / layers_, scored = static_cast<double>(reads.pages) / layers_;
        *costs++ = lines_[index].fixed + lines_[index].per_token * tokens + lines_[index].per_page * scored;
        continue;
      }
      const double sparse = pages < old_pages ? sparse_share_ : 0.0;
      const int64_t saved = std::min(held, page_size_ * (pages + 1) + sinks_) - held;
      const double tokens = static_cast<double>(held) + sparse * static_cast<double>(saved);
      const CostLine& line = lines_[index];
      *costs++ = line.fixed + line.per_token * tokens + line.per_page * (sparse * static_cast<double>(old_pages));
    }
  }
}

StepCostTable::StepCostTable(const std::vector<Action>& actions, const CostModel& cost, double policy_cost)
    : actions_(actions, cost), count_(actions.size()), policy_cost_(policy_cost) {
  for (const Action& action : actions) is_dense_.push_back(action == cost.dense());
  dense_ = static_cast<size_t>(std::find(is_dense_.begin(), is_dense_.end(), 1) - is_dense_.begin());
}

const StepCosts& StepCostTable::At(int64_t context) {
  const int64_t first = context / kCostBlock * kCostBlock;
  if (first != first_) Compute(first);
  return rows_[static_cast<size_t>(context - first)];
}

void StepCostTable::Compute(int64_t first) {
  const size_t cells = count_ * kCostBlock;
  costs_.resize(cells);
  relative_.resize(cells);
  useful_.resize(cells);
  rows_.clear();
  actions_.Compute(first, kCostBlock, costs_.data());
  for (size_t row = 0; row < kCostBlock; ++row) {
    double* costs = &costs_[row * count_];
    double* relative = &relative_[row * count_];
    char* useful = &useful_[row * count_];
    const double dense = costs[dense_];
    for (size_t index = 0; index < count_; ++index) {
      costs[index] += policy_cost_;
      useful[index] = costs[index] < dense + policy_cost_ || is_dense_[index];
      relative[index] = costs[index] / dense;
    }
    const auto [low, high] = std::minmax_element(costs, costs + count_);
    rows_.push_back({first + static_cast<int64_t>(row), costs, relative, useful, *low, *high, dense});
  }
  first_ = first;
}

}  // namespace sol_rt
