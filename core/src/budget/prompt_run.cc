#include "budget/prompt_run.h"

#include <algorithm>

#include "budget/hull/losses.h"

namespace sol_rt {

PromptRun CheapestPrompt(const Config& config, double most, int64_t tokens) {
  PromptRun best{config.dense, 0.0};
  if (most <= 0.0) return best;
  int64_t bytes = config.variants.at(config.dense.Variant()).weight_bytes;
  for (const auto& [key, variant] : config.variants) {
    if (variant.prompt_losses.empty() || variant.weight_bytes >= bytes) continue;
    const double loss = std::max(LossCurve(variant.prompt_losses).At(tokens), 0.0);
    if (loss > most) continue;
    best = {Action::Parse("k100-" + key), loss};
    bytes = variant.weight_bytes;
  }
  return best;
}

}  // namespace sol_rt
