#include "budget/prompt_run.h"

#include <algorithm>
#include <limits>
#include <map>
#include <string>

#include "budget/hull/losses.h"

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

  // Of the first `cached` tokens of the cache.
  double Of(int64_t cached) const {
    std::vector<int64_t> counts(losses_.size());
    for (int64_t i = 0; i < cached; ++i) ++counts[Place(i)];
    double loss = 0.0;
    for (size_t i = 0; i < counts.size(); ++i) {
      if (counts[i] > 0) loss += losses_[i] * Share(counts[i]);
    }
    return loss;
  }

  // Tokens at the beginning of the cache that lose at most `most` together.
  int64_t Within(double most) const {
    double loss = 0.0;
    int64_t kept = 0;
    for (const auto count = static_cast<int64_t>(seen_.readers.size()); kept < count; ++kept) {
      loss += losses_[Place(kept)] * Share(1);
      if (!(loss <= most)) break;
    }
    return kept;
  }

  double Share(int64_t count) const { return static_cast<double>(count) / static_cast<double>(seen_.tokens); }

 private:
  size_t Place(int64_t token) const { return static_cast<size_t>(seen_.readers[static_cast<size_t>(token)]); }

  const PromptSeen& seen_;
  std::vector<double> losses_;  // by place in the config's order
};

int64_t Held(const PromptSeen& seen, int64_t length) { return seen.held ? seen.held(length) : length; }

}  // namespace

PromptRun ChoosePrompt(const Config& config, const PromptSeen& seen, double most) {
  const Mixed mixed(config, seen);
  const int64_t cached = Held(seen, mixed.Within(most)), left = seen.tokens - cached;
  const double before = mixed.Of(cached);
  PromptRun best{config.dense, cached, before};
  if (!(most > 0.0) || left < kLeastCheapTokens) return best;
  int64_t bytes = config.variants.at(config.dense.Variant()).weight_bytes;
  for (const auto& [key, variant] : config.variants) {
    if (variant.prompt_losses.empty() || variant.weight_bytes >= bytes) continue;
    const double loss = before + WholeLoss(config, key, seen.tokens) * mixed.Share(left);
    if (!(loss <= most)) continue;
    best = {Action::Parse("k100-" + key), cached, loss};
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
  const int64_t cached = Held(seen, other - seen.readers.begin());
  return {action, cached, mixed.Of(cached) + WholeLoss(config, own, seen.tokens) * mixed.Share(seen.tokens - cached)};
}

}  // namespace sol_rt
