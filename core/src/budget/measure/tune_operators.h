// Measures which settings of the CPU's operators are best on this processor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "bundle/action.h"
#include "bundle/bundle.h"
#include "engine/engine_factory.h"

namespace sol_rt {

// The place of the setting to take, by how many times as fast as the first one each was in every round, at least two: the best
// median, if that is a gain of `least` or more, nine rounds of ten were faster and the mean gain is beyond what the rounds scatter.
// Else 0, the defaults.
size_t ChooseSetting(const std::vector<std::vector<double>>& gains, double least = 1.02);

// True if the gains agree from round to round, on average over all settings but the first. Where they do not, other programs ran meanwhile.
bool IsSteady(const std::vector<std::vector<double>>& gains);

struct TuneEffort {
  double seconds = 1.5;  // about how long to take, at most twice that
  bool wide = false;     // whether more settings are tried
};

struct Tuned {
  Tuning tuning;
  double gain = 1.0;      // over the defaults, at least 1
  double dense_ms = 0.0;  // of a dense step under these settings, the lower quartile
  bool steady = true;     // whether the gains agreed from round to round
};

// Times steps of `dense` and `cheapest` after `length` tokens under each setting, in turn. Applies and returns the one that ChooseSetting takes; the defaults
// where there was no time for four rounds. Both actions have run before. If a step throws, the operators run as before the call.
Tuned TuneOperators(EngineFactory& factory, Engine& engine, int64_t length, const Action& dense, const Action& cheapest, const TuneEffort& effort,
                    const Progress& progress = nullptr);

// Times whole 4-bit steps without and with copies of the matrices, and applies copies if these are 5% faster or more. Returns the gain, 1 if it is not clear;
// nothing if the bundle has no such steps, they are too slow for four rounds, or memory has no room for copies.
std::optional<double> TuneCopies(EngineFactory& factory, Engine& engine, int64_t length, double seconds);

}  // namespace sol_rt
