// What both cost models share: the cost of a step from its line, and how much the step reads.
#include "budget/cost_model.h"

#include <algorithm>

namespace sol_rt {

CostModel::CostModel(const Config& config)
    : dense_(config.dense),
      page_size_(config.kv.page_size),
      sinks_(config.kv.sinks),
      layers_(config.model.num_layers),
      dense_layers_(static_cast<int64_t>(config.kv.dense_layers.size())) {}

double CostModel::Step(const Action& action, int64_t context) const {
  const int64_t held = context + 1, old_pages = (held + page_size_ - 1) / page_size_ - 1, pages = action.Pages(context, page_size_);
  double tokens = static_cast<double>(held), scored = 0.0;  // means over the layers
  if (pages < old_pages) {
    const int64_t sparse = layers_ - dense_layers_, read = std::min(held, page_size_ * (pages + 1) + sinks_);
    tokens = static_cast<double>(sparse * read + dense_layers_ * held) / static_cast<double>(layers_);
    scored = static_cast<double>(sparse * old_pages) / static_cast<double>(layers_);
  }
  const CostLine line = Line(action);
  return line.fixed + line.per_token * tokens + line.per_page * scored;
}

}  // namespace sol_rt
