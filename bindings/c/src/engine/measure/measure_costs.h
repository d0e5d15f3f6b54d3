// Times every variant at one short context, for a cost model in milliseconds: sol_rt/budget/cost/profile.py's `measure_quickly`.
#pragma once

#include <memory>

#include "budget/cost/cost_table.h"
#include "engine/model.h"

namespace sol_rt {

// With native operators, their settings are tried first. Takes about four seconds, up to twice that if the times scatter or steps are slow. Other work on
// the machine makes the result worse. Throws SOL_ERROR_USAGE where the context has no room for a step, and what `Engine::Forward` throws.
CostTable MeasureCosts(std::shared_ptr<Model> model);

}  // namespace sol_rt
