// Costs of the C interface, and the hull of actions, from a bundle's config alone.
#include "api/costs.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <mutex>
#include <string>

#include "api/border.h"
#include "base/error.h"
#include "base/sha256.h"
#include "budget/cost/cost_table.h"
#include "budget/cost/step_costs.h"
#include "budget/hull/hull.h"
#include "budget/hull/losses.h"
#include "budget/hull/lower_hull.h"
#include "budget/schedules/schedule.h"
#include "bundle/config/config_reader.h"

using sol_rt::Action;
using sol_rt::Guard;
using sol_rt::RequireHandle;
using sol_rt::RequirePointer;
using sol_rt::UsageFault;

struct sol_hull {
  size_t count;  // of the actions
  mutable std::mutex mutex;
  mutable sol_rt::Hull hull;
};

using sol_rt::RequireContext;

namespace {

sol_rt::AxisTargets Targets(int32_t given) {
  sol_rt::AxisTargets targets;
  if (given != 0) targets.bits = 0.0;
  return targets;
}

// Fills nothing if the capacity is too small for the text and its NUL.
void CopyText(const std::string& text, const char* name, char* copy, size_t capacity, size_t* length) {
  *length = text.size();
  if (text.size() >= capacity) return;
  RequirePointer(copy, name);
  std::memcpy(copy, text.c_str(), text.size() + 1);
}

}  // namespace

namespace sol_rt {

void RequireContext(int64_t context) {
  if (context < 0 || context > std::numeric_limits<int32_t>::max()) {
    UsageFault("context: got " + std::to_string(context) + ", expected 0 or more tokens, below 2^31");
  }
}

std::vector<Action> ActionsOf(const char* const* tags, size_t count) {
  if (count > 0) RequirePointer(tags, "actions");
  std::vector<Action> actions;
  for (size_t index = 0; index < count; ++index) {
    RequirePointer(tags[index], "actions");
    actions.push_back(Action::Parse(tags[index]));
  }
  return actions;
}

sol_cost_table CostTableOf(const StoredCosts& costs) { return {sizeof(sol_cost_table), costs.table.c_str(), costs.file.c_str(), costs.note.c_str()}; }

}  // namespace sol_rt

extern "C" {

sol_error* sol_costs_create(const char* config, const char* table, sol_costs** costs) {
  return Guard([&] {
    RequirePointer(costs, "sol_costs_create: costs");
    *costs = nullptr;
    RequirePointer(config, "sol_costs_create: config");
    auto made = std::make_unique<sol_costs>();
    made->config = std::make_shared<const sol_rt::Config>(sol_rt::ReadConfig(config, sol_rt::kConfigFile));
    if (table != nullptr) made->found.table = table;
    made->found.cost = table == nullptr ? sol_rt::MakeBytesCost(*made->config) : sol_rt::MakeMeasuredCost(*made->config, sol_rt::CostTable::FromJson(table));
    *costs = made.release();
  });
}

sol_error* sol_costs_find(const char* folder, const char* config, const char* device, int32_t quick, sol_costs** costs) {
  return Guard([&] {
    RequirePointer(costs, "sol_costs_find: costs");
    *costs = nullptr;
    RequirePointer(config, "sol_costs_find: config");
    RequirePointer(device, "sol_costs_find: device");
    auto made = std::make_unique<sol_costs>();
    made->config = std::make_shared<const sol_rt::Config>(sol_rt::ReadConfig(config, sol_rt::kConfigFile));
    made->found = sol_rt::FindCosts(folder == nullptr ? sol_rt::CostsFolder() : folder, *made->config, sol_rt::Sha256Hex(config), device, quick != 0);
    *costs = made.release();
  });
}

sol_error* sol_costs_keep(sol_costs* costs, const char* folder) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_keep");
    if (costs->found.table.empty()) UsageFault("sol_costs_keep: got costs in bytes, expected those of a table");
    const sol_rt::CostTable table = sol_rt::CostTable::FromJson(costs->found.table);
    costs->found.file = sol_rt::KeepCosts(folder == nullptr ? sol_rt::CostsFolder() : folder, *costs->config, table);
  });
}

sol_error* sol_costs_get_table(const sol_costs* costs, sol_cost_table* table) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_get_table");
    sol_rt::RequireSized(table, "sol_cost_table");
    sol_rt::FillStruct(sol_rt::CostTableOf(costs->found), table);
  });
}

void sol_costs_release(sol_costs* costs) { delete costs; }

sol_error* sol_costs_steps(const sol_costs* costs, const char* const* actions, size_t num_actions, const int64_t* contexts, size_t num_contexts,
                           double* steps) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_steps");
    const sol_rt::ActionCosts found(sol_rt::ActionsOf(actions, num_actions), costs->cost());
    if (num_contexts == 0 || num_actions == 0) return;
    RequirePointer(contexts, "sol_costs_steps: contexts");
    RequirePointer(steps, "sol_costs_steps: steps");
    for (size_t index = 0; index < num_contexts; ++index) {
      RequireContext(contexts[index]);
      found.Compute(contexts[index], 1, steps + index * num_actions);
    }
  });
}

sol_error* sol_costs_reads(const sol_costs* costs, const char* action, int64_t context, double* tokens, double* pages) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_reads");
    RequirePointer(action, "sol_costs_reads: action");
    RequirePointer(tokens, "sol_costs_reads: tokens");
    RequirePointer(pages, "sol_costs_reads: pages");
    RequireContext(context);
    const sol_rt::CostModel::MeanReads reads = costs->cost().Reads(Action::Parse(action), context);
    *tokens = reads.tokens;
    *pages = reads.pages;
  });
}

double sol_costs_policy(const sol_costs* costs) { return costs == nullptr ? 0.0 : costs->cost().Policy(); }

sol_error* sol_costs_losses(const sol_costs* costs, const char* const* actions, size_t num_actions, int64_t context, double* losses) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_losses");
    const std::vector<Action> wanted = sol_rt::ActionsOf(actions, num_actions);
    RequireContext(context);
    if (num_actions > 0) RequirePointer(losses, "sol_costs_losses: losses");
    const sol_rt::ActionLosses found(*costs->config);
    for (size_t index = 0; index < num_actions; ++index) losses[index] = found.At(wanted[index], context);
  });
}

sol_error* sol_costs_actions(const sol_costs* costs, const char* schedule, int32_t targets, char* tags, size_t capacity, size_t* length) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_actions");
    RequirePointer(schedule, "sol_costs_actions: schedule");
    RequirePointer(length, "sol_costs_actions: length");
    std::string text;
    for (const Action& action : sol_rt::ScheduleActions(*costs->config, schedule, Targets(targets))) text += (text.empty() ? "" : " ") + action.Tag();
    CopyText(text, "sol_costs_actions: tags", tags, capacity, length);
  });
}

sol_error* sol_costs_default_schedule(const sol_costs* costs, int32_t targets, const char** schedule) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_default_schedule");
    RequirePointer(schedule, "sol_costs_default_schedule: schedule");
    *schedule = sol_rt::DefaultSchedule(*costs->config, costs->cost(), Targets(targets));
  });
}

sol_error* sol_costs_schedule_note(const sol_costs* costs, const char* schedule, char* note, size_t capacity, size_t* length) {
  return Guard([&] {
    RequireHandle(costs, "sol_costs_schedule_note");
    RequirePointer(schedule, "sol_costs_schedule_note: schedule");
    RequirePointer(length, "sol_costs_schedule_note: length");
    CopyText(sol_rt::ScheduleNote(*costs->config, costs->cost(), schedule), "sol_costs_schedule_note: note", note, capacity, length);
  });
}

sol_error* sol_hull_create(const sol_costs* costs, const char* const* actions, size_t num_actions, sol_hull** hull) {
  return Guard([&] {
    RequirePointer(hull, "sol_hull_create: hull");
    *hull = nullptr;
    RequireHandle(costs, "sol_hull_create: costs");
    const std::vector<Action> mixed = sol_rt::ActionsOf(actions, num_actions);
    if (std::find(mixed.begin(), mixed.end(), costs->config->dense) == mixed.end()) {
      UsageFault("sol_hull_create: the dense action " + costs->config->dense.Tag() + " is not among the actions");
    }
    *hull = new sol_hull{num_actions, {}, sol_rt::Hull(mixed, costs->cost(), sol_rt::ActionLosses(*costs->config))};
  });
}

void sol_hull_release(sol_hull* hull) { delete hull; }

sol_error* sol_hull_corners(const sol_hull* hull, int64_t context, size_t* places, double* costs, double* losses, size_t* count) {
  return Guard([&] {
    RequireHandle(hull, "sol_hull_corners");
    RequirePointer(places, "sol_hull_corners: places");
    RequirePointer(costs, "sol_hull_corners: costs");
    RequirePointer(losses, "sol_hull_corners: losses");
    RequirePointer(count, "sol_hull_corners: count");
    RequireContext(context);
    const std::lock_guard<std::mutex> lock(hull->mutex);
    const std::vector<sol_rt::Corner>& corners = hull->hull.Corners(context);
    *count = std::min(corners.size(), hull->count);
    for (size_t index = 0; index < *count; ++index) {
      places[index] = corners[index].place;
      costs[index] = corners[index].cost;
      losses[index] = corners[index].loss;
    }
  });
}

sol_error* sol_hull_cost_at(const sol_hull* hull, double loss, int64_t context, double* cost) {
  return Guard([&] {
    RequireHandle(hull, "sol_hull_cost_at");
    RequirePointer(cost, "sol_hull_cost_at: cost");
    RequireContext(context);
    const std::lock_guard<std::mutex> lock(hull->mutex);
    *cost = hull->hull.CostAt(loss, context);
  });
}

sol_error* sol_lower_hull(double* xs, double* ys, size_t* count, int32_t falling) {
  return Guard([&] {
    RequirePointer(count, "sol_lower_hull: count");
    if (*count == 0) return;
    RequirePointer(xs, "sol_lower_hull: xs");
    RequirePointer(ys, "sol_lower_hull: ys");
    std::vector<sol_rt::Point> points;
    for (size_t index = 0; index < *count; ++index) points.emplace_back(xs[index], ys[index]);
    if (falling != 0) {
      sol_rt::KeepFallingHull(points);
    } else {
      sol_rt::KeepLowerHull(points);
    }
    for (size_t index = 0; index < points.size(); ++index) {
      xs[index] = points[index].first;
      ys[index] = points[index].second;
    }
    *count = points.size();
  });
}

}  // extern "C"
