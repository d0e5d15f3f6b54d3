// Times decode steps at several contexts and fits the lines of a cost table: longer than MeasureCosts, and better.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "budget/cost/cost_table.h"
#include "bundle/bundle.h"
#include "engine/engine.h"
#include "engine/policy_runner.h"

namespace sol_rt {

struct ProfilePlan {
  std::vector<int64_t> contexts;  // tokens in the cache, ascending, at least one
  int repeats = 15;               // timed steps of each action at each context
  double seconds = 60.0;          // about how long to take: then fewer repeats, at least five, and contexts left out that take long to fill
};

struct Profile {
  std::vector<Action> actions;          // every variant at every KV density
  std::vector<std::vector<double>> ms;  // [contexts that were measured, actions]: the lower quartile, as other programs only ever add time
  std::map<std::string, std::map<int, CostTable::Line>> lines;
  double policy_ms = 0.0;
};

// The actions take turns, so a machine that slows down does so for all, and a step pays for the switch from another variant. One line is fitted for each
// variant: densities differ in what they read, which is what its terms count. `policy` may be null. Overwrites the cache and leaves it empty.
Profile ProfileSteps(Engine& engine, PolicyRunner* policy, const ProfilePlan& plan, const Interrupted& interrupted, const Progress& progress);

struct Sample {
  double tokens, pages, ms;  // read, scored, taken
};

// The line without negative coefficients of which the sum of absolute relative residuals is smallest: unlike squares, a few disturbed timings do not move it.
// Throws SOL_ERROR_NUMERIC if there is no timing, or a time is not positive.
CostTable::Line FitLine(const std::vector<Sample>& samples);

}  // namespace sol_rt
