#include "engine/distribution.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#ifdef SOL_RT_OPERATORS
extern "C" int64_t SolRtSoftmaxSums(const float* logits, size_t size, float* sums);
#endif

namespace sol_rt {
namespace {

#ifndef SOL_RT_OPERATORS
int64_t SolRtSoftmaxSums(const float* logits, size_t size, float* sums) {
  size_t top = 0;
  for (size_t i = 0; i < size; ++i) {
    if (!std::isfinite(logits[i])) return -1;
    if (logits[i] > logits[top]) top = i;
  }
  double total = 0.0, moment = 0.0;
  float second = std::numeric_limits<float>::lowest();
  for (size_t i = 0; i < size; ++i) {
    const float centred = logits[i] - logits[top];
    const float exponential = std::exp(centred);
    total += exponential;
    moment += double{exponential} * centred;
    if (i != top && logits[i] > second) second = logits[i];
  }
  sums[0] = static_cast<float>(total);
  sums[1] = static_cast<float>(moment);
  sums[2] = second;
  return static_cast<int64_t>(top);
}
#endif

}  // namespace

Distribution MakeDistribution(const float* logits, int32_t size) {
  Distribution made;
  made.logits = logits;
  made.size = size;
  float sums[3] = {1.0f, 0.0f, 0.0f};
  made.top = static_cast<int32_t>(SolRtSoftmaxSums(logits, static_cast<size_t>(size), sums));
  if (made.finite()) {
    made.total = sums[0];
    made.moment = sums[1];
    made.second = sums[2];
  }
  return made;
}

double Distribution::TopProbability() const { return 1.0 / total; }

double Distribution::Margin() const { return -std::expm1(double{second} - double{logits[top]}) / total; }

double Distribution::Entropy() const { return std::log(double{total}) - double{moment} / total; }

double Distribution::LogSum() const { return logits[top] + std::log(double{total}); }

double Distribution::LogProbability(int32_t token) const { return logits[token] - LogSum(); }

std::vector<std::pair<int32_t, double>> Distribution::Likeliest(int32_t count) const {
  const int32_t wanted = std::clamp(count, 0, size);
  std::vector<int32_t> order(static_cast<size_t>(size));
  std::iota(order.begin(), order.end(), 0);
  const auto before = [this](int32_t a, int32_t b) { return logits[a] != logits[b] ? logits[a] > logits[b] : a < b; };
  std::partial_sort(order.begin(), order.begin() + wanted, order.end(), before);
  const double log_sum = LogSum();
  std::vector<std::pair<int32_t, double>> likeliest;
  for (int32_t i = 0; i < wanted; ++i) likeliest.emplace_back(order[i], logits[order[i]] - log_sum);
  return likeliest;
}

}  // namespace sol_rt
