// Contents of a `sol_costs`.
#pragma once

#include <memory>
#include <vector>

#include "budget/measure/stored_costs.h"
#include "bundle/config/config.h"
#include "sol_plan.h"

struct sol_costs {
  std::shared_ptr<const sol_rt::Config> config;
  sol_rt::StoredCosts found;
  const sol_rt::CostModel& cost() const { return *found.cost; }
};

namespace sol_rt {

// Throws SOL_ERROR_USAGE for a context below 0, and for one that no cache can have.
void RequireContext(int64_t context);
// Reads tags. Throws SOL_ERROR_USAGE.
std::vector<Action> ActionsOf(const char* const* tags, size_t count);
// Pointers are valid as long as `costs`.
sol_cost_table CostTableOf(const StoredCosts& costs);

}  // namespace sol_rt
