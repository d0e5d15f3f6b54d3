// Timing of steps.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "engine/engine.h"

namespace sol_rt {

using Clock = std::chrono::steady_clock;

inline double SecondsSince(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// Milliseconds of a step after the first `length` tokens of the cache.
inline double TimedStep(Engine& engine, int64_t length, const Action& action) {
  const int32_t token = 0;
  engine.Truncate(length);
  const Clock::time_point start = Clock::now();
  engine.Forward(&token, 1, action);
  return SecondsSince(start) * 1e3;
}

// As NumPy's percentile: linear between neighbours.
inline double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

}  // namespace sol_rt
