// Times every variant at one short context, for a cost model in milliseconds.
#pragma once

#include <cstdint>
#include <ctime>
#include <string>

#include "budget/cost/cost_table.h"
#include "bundle/bundle.h"
#include "engine/engine.h"
#include "engine/engine_factory.h"
#include "engine/policy_runner.h"

namespace sol_rt {

// With native operators, their settings are tried first. Takes 2 to 6 s, the longer if the times scatter or steps are slow. Other work on
// the machine makes the result worse. Throws SOL_ERROR_USAGE where the context has no room for a step, and what `Engine::Forward` throws.
CostTable MeasureCosts(EngineFactory& factory, const Bundle& bundle, int64_t max_context, const Progress& progress = nullptr);

// A time as tables have it: ISO 8601, of UTC, in seconds.
std::string IsoTime(std::time_t time);

// Milliseconds of one run of the policy after a step of `before` at `length` tokens, which has filled the processor's caches with the model's weights: the
// lower quartile of seven. Leaves one token after them in the cache.
double PolicyMs(PolicyRunner& policy, Engine& engine, int64_t length, const Action& before);

}  // namespace sol_rt
