// The variant that runs a prompt under a dial, and what that adds to the loss of the steps after it.
#pragma once

#include <cstdint>

#include "bundle/action.h"
#include "bundle/config/config.h"

namespace sol_rt {

struct PromptRun {
  Action action;
  double loss;  // expected of dense steps after the prompt, nats a token; 0 where dense or not measured
};

// Share of the loss that a dial allows which the prompt may take. The rest is for the steps.
inline constexpr double kPromptShare = 0.5;

// The run of a prompt of so many tokens that reads the fewest bytes of weights, of those expected to lose at most `most` nats a token; the dense one if none does.
PromptRun CheapestPrompt(const Config& config, double most, int64_t tokens);

}  // namespace sol_rt
