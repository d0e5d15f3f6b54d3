#include "budget/prompt_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <string>

#include "budget/hull/losses.h"
#include "engine/engine.h"

namespace sol_rt {
namespace {

// Loss of steps behind a prompt of so many tokens that the variant of this key read all of; NaN if not measured.
double WholeLoss(const Config& config, const std::string& key, int64_t tokens) {
  if (key == config.dense.Variant()) return 0.0;
  const std::map<int64_t, double>& losses = config.variants.at(key).prompt_losses;
  return losses.empty() ? std::numeric_limits<double>::quiet_NaN() : std::max(LossCurve(losses).At(tokens), 0.0);
}

// Losses of a prompt whose tokens have been read by several variants.
class Mixed {
 public:
  Mixed(const Config& config, const PromptSeen& seen) : seen_(seen) {
    for (const std::string& key : config.variant_order) losses_.push_back(WholeLoss(config, key, seen.tokens));
  }

  // The loss of the first `cached` tokens of the cache, or of fewer where they lose more than `most`; `kept` is their number.
  double Of(int64_t cached, double most, int64_t& kept) const {
    double loss = 0.0;
    for (kept = 0; kept < cached; ++kept) {
      const double next = loss + losses_[static_cast<size_t>(seen_.readers[static_cast<size_t>(kept)])] * Share(1);
      if (next > most || (std::isnan(next) && !std::isinf(most))) break;
      loss = next;
    }
    return loss;
  }

  double Share(int64_t count) const { return static_cast<double>(count) / static_cast<double>(seen_.tokens); }

 private:
  const PromptSeen& seen_;
  std::vector<double> losses_;  // by place in the config's order
};

int64_t Held(const PromptSeen& seen, int64_t length) { return length > 0 ? seen.engine->Held(length) : 0; }

}  // namespace

PromptRun ChoosePrompt(const Config& config, const PromptSeen& seen, double most) {
  const Mixed mixed(config, seen);
  int64_t cached;
  double before = mixed.Of(static_cast<int64_t>(seen.readers.size()), most, cached);
  cached = Held(seen, cached);
  if (cached == 0) before = 0.0;
  const int64_t left = seen.tokens - cached;
  PromptRun best{config.dense, cached, before, !(most > 0.0)};
  if (!(most > 0.0) || left < kLeastCheapTokens) return best;
  int64_t bytes = config.variants.at(config.dense.Variant()).weight_bytes;
  for (const auto& [key, variant] : config.variants) {
    if (variant.prompt_losses.empty() || variant.weight_bytes >= bytes) continue;
    const double loss = before + WholeLoss(config, key, seen.tokens) * mixed.Share(left);
    if (!(loss <= most)) continue;
    best = {Action::Parse("k100-" + key), cached, loss, false};
    bytes = variant.weight_bytes;
  }
  return best;
}

PromptRun FixedPrompt(const Config& config, const PromptSeen& seen, const Action& action) {
  const std::string own = action.Variant(), dense = config.dense.Variant();
  const auto other = std::find_if(seen.readers.begin(), seen.readers.end(), [&](int32_t reader) {
    const std::string& key = config.variant_order[static_cast<size_t>(reader)];
    return key != own && key != dense;
  });
  const Mixed mixed(config, seen);
  int64_t cached;
  const double before = mixed.Of(Held(seen, other - seen.readers.begin()), std::numeric_limits<double>::infinity(), cached);
  return {action, cached, before + WholeLoss(config, own, seen.tokens) * mixed.Share(seen.tokens - cached), own == dense};
}

}  // namespace sol_rt
