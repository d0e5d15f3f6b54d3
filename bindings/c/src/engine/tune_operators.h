// Measures which settings of the CPU's operators are best on this processor: sol_rt/budget/cost/tune.py.
#pragma once

#include <cstdint>
#include <vector>

#include "budget/cost/tuning.h"
#include "bundle/action.h"

namespace sol_rt {

class Engine;

// Sets how the operators of this process run from now on. Does nothing in a library without them.
void ApplyTuning(const Tuning& tuning);

// Times the dense and the fastest of `actions` behind `length` tokens under each setting, in turn, for about 1.5 seconds. Applies and returns the best one:
// the defaults, unless another is at least 2% faster and was faster in nine rounds of ten. All actions have run before.
Tuning TuneOperators(Engine& engine, int64_t length, const std::vector<Action>& actions, size_t dense, int32_t threads);

}  // namespace sol_rt
