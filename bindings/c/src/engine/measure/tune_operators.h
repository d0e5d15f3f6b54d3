// Measures which settings of the CPU's operators are best on this processor: sol_rt/budget/cost/tune.py.
#pragma once

#include <cstdint>

#include "budget/cost/tuning.h"
#include "bundle/action.h"

namespace sol_rt {

class Engine;

// Sets how the operators of this process run from now on, and tells how they run. Without operators the first does nothing.
void ApplyTuning(const Tuning& tuning);
Tuning CurrentTuning();

// Times steps of `dense` and `cheapest` behind `length` tokens under each setting, in turn, for 1.5 to 3 seconds. Applies and returns the best one: the
// defaults, unless another is at least 2% faster and was faster in nine rounds of ten. Both actions have run before. If a step throws, the operators
// run as before the call.
Tuning TuneOperators(Engine& engine, int64_t length, const Action& dense, const Action& cheapest, int32_t threads);

}  // namespace sol_rt
