#include "engine/distribution.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#ifdef SOL_RT_OPERATORS
extern "C" int64_t SolRtSoftmaxSums(const float* logits, size_t size, float* sums);
#endif

namespace sol_rt {
namespace {

#ifndef SOL_RT_OPERATORS
constexpr size_t kLanes = 8;  // compilers make vectors of loops over them

// e^x of x <= 0, within 2e-7 of itself. Written out, as compilers make no vectors of a library's; 0 where it would hardly be a normal number.
float Exponential(float x) {
  constexpr float kLeast = -87.0f;
  const float within = x < kLeast ? kLeast : x;
  const auto power = static_cast<int32_t>(within * 1.44269504f - 0.5f);
  const float rest = (within - power * 0.693359375f) + power * 2.12194440e-4f;
  float series = 1.9875691500e-4f;
  for (const float term : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 0.5f, 1.0f, 1.0f}) series = series * rest + term;
  const uint32_t bits = static_cast<uint32_t>(power + 127) << 23;
  float scale;
  std::memcpy(&scale, &bits, sizeof scale);
  return x < kLeast ? 0.0f : series * scale;
}

float Largest(const float* values, size_t size) {
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, std::numeric_limits<float>::lowest());
  size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) lanes[lane] = values[i + lane] > lanes[lane] ? values[i + lane] : lanes[lane];
  }
  for (; i < size; ++i) lanes[0] = std::max(lanes[0], values[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

int64_t SolRtSoftmaxSums(const float* logits, size_t size, float* sums) {
  bool finite = true;
  for (size_t i = 0; i < size; ++i) finite &= std::abs(logits[i]) <= std::numeric_limits<float>::max();
  if (!finite) return -1;
  const float largest = Largest(logits, size);
  const size_t top = static_cast<size_t>(std::find(logits, logits + size, largest) - logits);
  double totals[kLanes] = {}, moments[kLanes] = {};
  const auto add = [&](size_t i, size_t lane) {
    const float centred = logits[i] - largest;
    const float exponential = Exponential(centred);
    totals[lane] += exponential;
    moments[lane] += double{exponential} * centred;
  };
  size_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) add(i + lane, lane);
  }
  for (; i < size; ++i) add(i, 0);
  sums[0] = static_cast<float>(std::accumulate(totals, totals + kLanes, 0.0));
  sums[1] = static_cast<float>(std::accumulate(moments, moments + kLanes, 0.0));
  sums[2] = std::max(Largest(logits, top), Largest(logits + top + 1, size - top - 1));
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
