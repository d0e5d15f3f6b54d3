// Picks the next token from logits (docs/reference/decode-loop.md, section 5). The order is that of transformers: logit bias, repetition penalty, presence and
// frequency penalty, mask, temperature, top_k, top_p, min_p. Random numbers depend on the seed and the position alone.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

#include "engine/distribution.h"
#include "generate/gumbel.h"
#include "generate/settings/generation_config.h"
#include "generate/token_mask.h"

namespace sol_rt {

// A draw depends on seed, position and scores alone, not on the draws before it. But a sampler counts tokens for the penalties, so each generation has its own.
class Sampler {
 public:
  struct Picked {
    int32_t token;
    double logprob;  // nats, under the raw distribution
  };

  // Throws SOL_ERROR_USAGE for a logit bias of a token outside the vocabulary. `config.seed` has to be set unless `config.greedy()`.
  Sampler(const GenerationConfig& config, int32_t vocab_size);

  // `history`: tokens of the prompt and the text so far. Their number is the position of the token, on which the noise depends; the tokens are read only
  // for the repetition penalty.
  // `mask`: the tokens that may be picked, one at least; null for all.
  Picked Sample(const Distribution& distribution, const std::vector<int32_t>& history, const uint32_t* mask);
  // After each token of the text: counts it for the penalties; with -1 takes it back.
  void Count(int32_t token, int change);

 private:
  bool Changes(const std::vector<int32_t>& history) const;
  void Change(const float* logits, const std::vector<int32_t>& history);  // fills scores_ with the logits after bias and penalties
  void Hide(const uint32_t* mask);                                       // sets the scores of the tokens that it leaves out to -inf
  void Divide();                                                         // scores_ by the temperature
  void FindCandidates(bool masked);                                      // fills tokens_ and values_ from scores_
  void KeepNucleus();
  void Keep(const std::vector<size_t>& places);  // of the candidates, in this order

  const GenerationConfig config_;
  const int32_t vocab_size_;
  const RandomWords random_;
  std::vector<float> bias_;       // [vocab]; empty if there is none
  std::vector<float> penalties_;  // [vocab], what presence and frequency penalty add; empty if there are none
  std::unordered_map<int32_t, int64_t> counts_;
  std::vector<float> scores_;     // [vocab]
  std::vector<int32_t> tokens_;   // that may be drawn; empty stands for all
  std::vector<float> values_;     // their scores, less the largest
  std::vector<float> weights_;    // exp(values_), for top_p and min_p
};

}  // namespace sol_rt
