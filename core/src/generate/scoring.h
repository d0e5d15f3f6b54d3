// Log-probabilities of given tokens, computed by the decode steps that a generation takes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "engine/engine.h"
#include "generate/decoder.h"

namespace sol_rt {

// Buffers for the results of `num_tokens - context` scored tokens. A buffer that is null is not filled.
struct ScoreRows {
  double* logprobs = nullptr;  // [scored], nats
  float* logits = nullptr;     // [scored, vocab], from which each token was scored
  float* hidden = nullptr;     // [scored, hidden]
};

// Throws SOL_ERROR_USAGE for a context that is not 1 to fewer than all tokens, SOL_ERROR_CONTEXT for more tokens than the context takes.
void RequireScorable(const Engine& engine, size_t num_tokens, size_t context);

// Runs the first `context` tokens under `prefill` on an empty cache. Then each token is scored and processed as a decode step; the last one is only scored.
// Returns the steps, one fewer than the tokens scored. Throws what RequireScorable throws, and SOL_ERROR_USAGE for a token outside the vocabulary, before
// anything runs; and what `Engine::Forward` throws.
std::vector<StepRecord> Score(Engine& engine, Decoder& decoder, const Action& prefill, const int32_t* tokens, size_t num_tokens, size_t context,
                              const ScoreRows& rows, const Interrupted& interrupted);

}  // namespace sol_rt
