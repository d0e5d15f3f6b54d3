// Base of both cost models: the cost of a step from its line, and the reads of the step.
#include "budget/cost_model.h"

#include <algorithm>

namespace sol_rt {

CostModel::CostModel(const Config& config)
    : dense_(config.dense),
      page_size_(config.kv.page_size),
      sinks_(config.kv.sinks),
      layers_(config.kv.Attending(config.model)),
      dense_layers_(static_cast<int64_t>(config.kv.dense_layers.size())) {
  const std::vector<int32_t>& dense = config.kv.dense_layers;
  for (size_t layer = 0; layer < config.kv.windows.size(); ++layer) {
    if (config.kv.Convolves(static_cast<int32_t>(layer))) continue;
    const bool is_dense = std::binary_search(dense.begin(), dense.end(), static_cast<int32_t>(layer));
    const int64_t window = config.kv.windows[layer];
    const auto same = [&](const LayerKind& kind) { return kind.window == window && kind.dense == is_dense; };
    const auto found = std::find_if(kinds_.begin(), kinds_.end(), same);
    if (found == kinds_.end()) {
      kinds_.push_back({window, is_dense, 1});
    } else {
      ++found->layers;
    }
  }
}

CacheReads ReadsByWindow(const std::vector<LayerKind>& kinds, int64_t page_size, int64_t sinks, int64_t held, int64_t old_pages, int64_t pages) {
  CacheReads reads{};
  for (const LayerKind& kind : kinds) {
    const int64_t seen = kind.window > 0 ? std::min(held, kind.window) : held, before = (held - seen) / page_size;
    const int64_t old = old_pages - before, most = std::max<int64_t>(old_pages, 1), kept = (pages * old + most - 1) / most;
    if (pages < old_pages && kept < old && !kind.dense) {
      reads.tokens += kind.layers * std::min(seen, page_size * (kept + 1) + std::max<int64_t>(sinks - page_size * before, 0));
      reads.pages += kind.layers * old;
    } else {
      reads.tokens += kind.layers * seen;
    }
  }
  return reads;
}

CostModel::MeanReads CostModel::Reads(const Action& action, int64_t context) const {
  const int64_t held = context + 1, old_pages = (held + page_size_ - 1) / page_size_ - 1, pages = action.Pages(context, page_size_);
  const auto layers = static_cast<double>(layers_);
  if (!kinds_.empty()) {
    const CacheReads reads = ReadsByWindow(kinds_, page_size_, sinks_, held, old_pages, pages);
    return {static_cast<double>(reads.tokens) / layers, static_cast<double>(reads.pages) / layers};
  }
  if (pages >= old_pages) return {static_cast<double>(held), 0.0};
  const int64_t sparse = layers_ - dense_layers_, read = std::min(held, page_size_ * (pages + 1) + sinks_);
  return {static_cast<double>(sparse * read + dense_layers_ * held) / layers, static_cast<double>(sparse * old_pages) / layers};
}

double CostModel::Step(const Action& action, int64_t context) const {
  const MeanReads reads = Reads(action, context);
  const CostLine line = Line(action);
  return line.fixed + line.per_token * reads.tokens + line.per_page * reads.pages;
}

}  // namespace sol_rt
