// The variant that runs a prompt, the tokens of the cache that the prompt keeps, and what both add to the loss of the steps after it.
#pragma once

#include <cstdint>
#include <vector>

#include "bundle/action.h"
#include "bundle/config/config.h"

namespace sol_rt {

class Engine;

struct PromptSeen {
  int64_t tokens = 0;                 // of the prompt
  std::vector<int32_t> readers = {};  // of those that the cache has, as `Engine::Readers` returns them
  const Engine* engine = nullptr;     // has the cache; null for none
};

struct PromptRun {
  Action action;   // runs what the cache does not have
  int64_t cached;  // tokens of the cache that stay
  double loss;     // expected of dense steps after the prompt, nats a token; NaN if a variant was not measured
  bool dense = true;  // of the cache, only tokens that the dense variant read stay
};

// Share of the loss that a dial allows which the prompt may take. The rest is for the steps.
inline constexpr double kPromptShare = 0.5;
// Fewer tokens run dense: a dense run of them takes no longer than some steps, so that fewer bits would save nothing one notices.
inline constexpr int64_t kLeastCheapTokens = 64;

// The run that reads the fewest bytes of weights, of those expected to lose at most `most` nats a token; the dense one if none does. Only variants whose
// prompts were measured count: those are known to be faster. A token adds its share of its variant's loss. So the cache stays up to where it loses more.
PromptRun ChoosePrompt(const Config& config, const PromptSeen& seen, double most);

// The run by an action that is given. The cache stays up to the first token that neither a dense run nor this action's variant read.
PromptRun FixedPrompt(const Config& config, const PromptSeen& seen, const Action& action);

}  // namespace sol_rt
