#include "generate/scoring.h"

#include <algorithm>

#include "base/error.h"

namespace sol_rt {

void RequireScorable(const Engine& engine, size_t num_tokens, size_t context) {
  if (context < 1 || context >= num_tokens) {
    UsageFault("score: got " + std::to_string(num_tokens) + " tokens and a context of " + std::to_string(context) + ", expected 1 to fewer than all");
  }
  if (num_tokens - 1 > static_cast<size_t>(engine.max_context())) {
    throw Error(SOL_ERROR_CONTEXT, "score: got " + std::to_string(num_tokens - 1) + " tokens to run, expected at most " +
                                       std::to_string(engine.max_context()) + ", the model's context; shorten it");
  }
}

std::vector<StepRecord> Score(Engine& engine, Decoder& decoder, const Action& prefill, const int32_t* tokens, size_t num_tokens, size_t context,
                              const ScoreRows& rows, const Interrupted& interrupted) {
  RequireScorable(engine, num_tokens, context);
  const auto vocab = static_cast<size_t>(engine.config().model.vocab_size), hidden = static_cast<size_t>(engine.config().model.hidden_size);
  for (size_t i = 0; i < num_tokens; ++i) {
    if (tokens[i] < 0 || static_cast<size_t>(tokens[i]) >= vocab) {
      UsageFault("score: token " + std::to_string(tokens[i]) + ": expected a whole number from 0 to " + std::to_string(vocab - 1));
    }
  }
  std::vector<StepRecord> steps;
  engine.Truncate(0);
  decoder.Continue(engine.Read(tokens, context, prefill, interrupted));
  const size_t count = num_tokens - context;
  for (size_t i = 0; i < count; ++i) {
    const int32_t token = tokens[context + i];
    const StepOutput& output = decoder.output();
    if (rows.logprobs != nullptr) rows.logprobs[i] = output.distribution.LogProbability(token);
    if (rows.logits != nullptr) std::copy_n(output.distribution.logits, vocab, rows.logits + i * vocab);
    if (rows.hidden != nullptr) std::copy_n(output.hidden, hidden, rows.hidden + i * hidden);
    if (i + 1 < count) steps.push_back(decoder.Step(token, interrupted));
  }
  return steps;
}

}  // namespace sol_rt
