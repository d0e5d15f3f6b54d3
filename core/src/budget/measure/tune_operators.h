// Measures which settings of the CPU's operators are best on this processor: sol_rt/budget/cost/tune.py.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "bundle/action.h"
#include "engine/engine_factory.h"

namespace sol_rt {

// The place of the setting to take, by how many times as fast as the first one each was in every round, at least two: the best
// median, if that is a gain of 2% or more, nine rounds of ten were faster and the mean gain is beyond what the rounds scatter.
// Else 0, the defaults.
size_t ChooseSetting(const std::vector<std::vector<double>>& gains);

// Times steps of `dense` and `cheapest` after `length` tokens under each setting, in turn, for 1.5 to 3 seconds. Applies and
// returns the one that ChooseSetting takes; the defaults where there was no time for four rounds. Both actions have run before.
// If a step throws, the operators run as before the call.
Tuning TuneOperators(EngineFactory& factory, Engine& engine, int64_t length, const Action& dense, const Action& cheapest);

}  // namespace sol_rt
