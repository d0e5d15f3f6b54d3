// Timing of steps.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <vector>

#include "engine/engine.h"
#include "engine/engine_factory.h"

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

// An engine on which steps of every variant are timed after a few tokens: all have run once.
struct TimedEngine {
  TimedEngine(EngineFactory& factory, const Config& config, int64_t max_context);
  const Action& dense() const { return actions[dense_place]; }
  const Action& cheapest() const { return actions[cheapest_place]; }  // in bytes

  std::unique_ptr<Engine> engine;
  int64_t length;                // tokens in the cache
  std::vector<Action> actions;   // with all of the KV cache, in the config's order of variants
  size_t dense_place = 0, cheapest_place = 0;
};

// As NumPy's percentile: linear between neighbours.
inline double Quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (values[high] - values[low]) * (at - static_cast<double>(low));
}

}  // namespace sol_rt
