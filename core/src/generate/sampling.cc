// Sums are float64 and everything else is float32. Exponentials are taken in float64 and rounded, because no two libraries agree
// on those of float32.
#include "generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>
#include <queue>

namespace sol_rt {
namespace {

constexpr size_t kNucleusGuess = 512;     // candidates that top_p sorts first; most nuclei are smaller
constexpr double kLargestLogit = 1e30;    // sums and products of smaller ones stay finite in float32
constexpr size_t kLargestHeap = 1 << 10;  // above it a selection is faster than a heap

// A positive setting as the nearest normal number of float32, so that one may divide by it.
float Float32(double value) {
  using Limits = std::numeric_limits<float>;
  return static_cast<float>(std::min(std::max(value, static_cast<double>(Limits::min())), static_cast<double>(Limits::max())));
}

// The `count`-th largest of `values`.
float Largest(const std::vector<float>& values, size_t count) {
  if (count > kLargestHeap) {
    std::vector<float> copy = values;
    std::nth_element(copy.begin(), copy.begin() + static_cast<std::ptrdiff_t>(count) - 1, copy.end(), std::greater<float>());
    return copy[count - 1];
  }
  const auto begin = values.begin(), rest = begin + static_cast<std::ptrdiff_t>(count);
  std::priority_queue<float, std::vector<float>, std::greater<float>> best(begin, rest);
  float least = best.top();
  for (auto value = rest; value != values.end(); ++value) {
    if (*value > least) {
      best.pop();
      best.push(*value);
      least = best.top();
    }
  }
  return least;
}

}  // namespace

Sampler::Sampler(const GenerationConfig& config, int32_t vocab_size)
    : config_(config), vocab_size_(vocab_size), random_(config.seed.value_or(0), RandomWords::Stream::kTokens) {
  config.CheckVocabulary(vocab_size);
  const size_t size = static_cast<size_t>(vocab_size);
  for (const auto& [token, bias] : config.logit_bias) {
    if (bias == 0) continue;
    bias_.resize(size);
    bias_[static_cast<size_t>(token)] = static_cast<float>(bias);
  }
  if (config.presence_penalty != 0 || config.frequency_penalty != 0) penalties_.resize(size);
}

Sampler::Picked Sampler::Sample(const Distribution& distribution, const std::vector<int32_t>& history, const uint32_t* mask) {
  int32_t token = distribution.top;
  const bool changes = Changes(history) || mask != nullptr;
  if (changes || !config_.greedy()) {
    Change(distribution.logits, history);
    if (mask != nullptr) Hide(mask);
    if (config_.greedy()) {
      token = static_cast<int32_t>(std::max_element(scores_.begin(), scores_.end()) - scores_.begin());
    } else {
      Divide();
      FindCandidates(mask != nullptr);
      token = NoisyArgmax(random_, static_cast<int64_t>(history.size()), tokens_, values_);
    }
  }
  return {token, distribution.LogProbability(token)};
}

bool Sampler::Changes(const std::vector<int32_t>& history) const {
  return (config_.repetition_penalty != 1.0 && !history.empty()) || !bias_.empty() || !counts_.empty();
}

void Sampler::Change(const float* logits, const std::vector<int32_t>& history) {
  scores_.assign(logits, logits + vocab_size_);
  for (size_t i = 0; i < bias_.size(); ++i) scores_[i] += bias_[i];
  if (config_.repetition_penalty != 1.0 && !history.empty()) {
    const float factor = Float32(config_.repetition_penalty), most = static_cast<float>(kLargestLogit);
    std::vector<int32_t> seen = history;
    std::sort(seen.begin(), seen.end());
    seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
    for (const int32_t token : seen) {
      float& score = scores_[static_cast<size_t>(token)];
      score = std::min(std::max(score < 0 ? score * factor : score / factor, -most), most);
    }
  }
  for (size_t i = 0; i < penalties_.size(); ++i) scores_[i] += penalties_[i];
}

// Comes after the penalties: their limits would make -inf a number.
void Sampler::Hide(const uint32_t* mask) {
  for (size_t i = 0; i < scores_.size(); ++i) {
    if (!Allows(mask, i)) scores_[i] = -std::numeric_limits<float>::infinity();
  }
}

void Sampler::Divide() {
  if (config_.temperature == 1.0) return;
  const float largest = *std::max_element(scores_.begin(), scores_.end());
  const float temperature = Float32(config_.temperature);
  // where the quotient would overflow, the difference to the largest is divided: -inf is a token that is never drawn
  const float subtracted = std::abs(static_cast<double>(largest)) < kLargestLogit * config_.temperature ? 0.0f : largest;
  for (float& score : scores_) score = (score - subtracted) / temperature;
}

void Sampler::FindCandidates(bool masked) {
  const size_t size = scores_.size();
  tokens_.clear();
  float largest;
  const bool uses_top_k = config_.top_k > 0 && config_.top_k < vocab_size_;
  if (uses_top_k || masked) {
    float least = std::numeric_limits<float>::lowest();  // leaves out -inf
    if (uses_top_k) least = std::max(least, Largest(scores_, static_cast<size_t>(config_.top_k)));  // tokens that tie with the last of the k stay
    largest = least;
    values_.clear();
    for (size_t i = 0; i < size; ++i) {
      if (scores_[i] < least) continue;
      tokens_.push_back(static_cast<int32_t>(i));
      values_.push_back(scores_[i]);
      largest = std::max(largest, scores_[i]);
    }
  } else {
    values_ = scores_;
    largest = *std::max_element(scores_.begin(), scores_.end());
  }
  for (float& value : values_) value -= largest;
  const bool uses_min_p = config_.min_p.value_or(0.0) != 0.0;
  if (config_.top_p == 1.0 && !uses_min_p) return;
  weights_.resize(values_.size());
  for (size_t i = 0; i < values_.size(); ++i) weights_[i] = static_cast<float>(std::exp(static_cast<double>(values_[i])));
  if (config_.top_p < 1.0) KeepNucleus();
  if (!uses_min_p) return;
  std::vector<size_t> kept;
  for (size_t i = 0; i < weights_.size(); ++i) {
    if (weights_[i] >= static_cast<float>(*config_.min_p)) kept.push_back(i);
  }
  Keep(kept);
}

// Keeps the likeliest: each one before which the likelier ones hold less than top_p of the sum. Among equals, lower ids come first.
void Sampler::KeepNucleus() {
  const double wanted = std::accumulate(weights_.begin(), weights_.end(), 0.0) * config_.top_p;
  std::vector<size_t> order;
  for (size_t guess = kNucleusGuess;; guess *= 8) {
    const bool all = guess >= weights_.size();
    const float least = all ? 0.0f : Largest(weights_, guess);
    order.clear();
    for (size_t i = 0; i < weights_.size(); ++i) {
      if (all || weights_[i] >= least) order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(), [this](size_t a, size_t b) { return weights_[a] > weights_[b]; });
    double mass = 0.0;
    size_t kept = 0;
    while (kept < order.size() && (kept == 0 || mass < wanted)) mass += weights_[order[kept++]];
    if (mass < wanted && order.size() < weights_.size()) continue;
    order.resize(kept);
    break;
  }
  Keep(order);
}

void Sampler::Keep(const std::vector<size_t>& places) {
  std::vector<int32_t> tokens;
  std::vector<float> values, weights;
  for (const size_t place : places) {
    tokens.push_back(tokens_.empty() ? static_cast<int32_t>(place) : tokens_[place]);
    values.push_back(values_[place]);
    weights.push_back(weights_[place]);
  }
  tokens_ = std::move(tokens);
  values_ = std::move(values);
  weights_ = std::move(weights);
}

void Sampler::Count(int32_t token, int change) {
  if (penalties_.empty()) return;
  const int64_t count = counts_[token] += change;
  if (count == 0) counts_.erase(token);
  penalties_[static_cast<size_t>(token)] =
      count == 0 ? 0.0f : static_cast<float>(-(config_.presence_penalty + config_.frequency_penalty * static_cast<double>(count)));
}

}  // namespace sol_rt
