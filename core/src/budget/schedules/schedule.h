// Schedules: who picks the action of each decode step. One file for each schedule.
//
// `hull` mixes the two actions that the export's measurements favour. `sol` asks the bundle's policy which steps get the dearer of them. `uniform`, `random` and the hand-made rule
// `entropy` are what the two are compared with. `fixed:TAG` and `dense` are constant. All but the constant ones choose only what the controller
// allows, so all of them hold the same budget through the same code.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "budget/controller/controller.h"
#include "budget/hull/hull.h"
#include "bundle/config/config.h"
#include "engine/policy_runner.h"

namespace sol_rt {

class Schedule {
 public:
  virtual ~Schedule() = default;
  // Inputs of the policy's run before this step; null where the schedule asks none. `Choose` of the same step then takes the answer.
  virtual const PolicyQuestion* Question(const StepSeen&) { return nullptr; }
  // True if `Choose` has to be called for every step, also where one action alone is allowed.
  virtual bool ChoosesEachStep() const { return false; }
  // The action for this step. The planner reports it to the controller when it has run.
  virtual Action Choose(const StepSeen& seen) = 0;
};

// Controllers outlive the schedules that are made on them.
std::unique_ptr<Schedule> MakeConstantSchedule(const Action& action);
std::unique_ptr<Schedule> MakeHullSchedule(Controller& controller, std::shared_ptr<Hull> hull);
std::unique_ptr<Schedule> MakeUniformSchedule(Controller& controller);
std::unique_ptr<Schedule> MakeEntropySchedule(Controller& controller);
std::unique_ptr<Schedule> MakeRandomSchedule(Controller& controller, std::optional<uint64_t> seed);  // without a seed it draws a fresh one
std::unique_ptr<Schedule> MakePolicySchedule(Controller& controller, std::shared_ptr<Hull> hull, const PolicySpec& spec, PolicyRunner& policy);

// The schedule `name` over the controller's actions. `hull` may be null; `policy`, too.
// Throws SOL_ERROR_USAGE for an unknown name, a tag whose variant the bundle lacks, `sol` without a policy, and for `sol` and `hull` without measured
// losses and under axis targets.
std::unique_ptr<Schedule> MakeSchedule(const Config& config, const std::string& name, Controller& controller, std::optional<uint64_t> seed,
                                       std::shared_ptr<Hull> hull, PolicyRunner* policy);

// True if the schedule always takes the same action, whatever the budget.
bool IsConstant(const std::string& name);
// `sol` where the bundle has a policy, and a run of it takes little of the time of a dense step where times were measured; else `hull`. Without measured losses
// and under axis targets `uniform`.
const char* DefaultSchedule(const Config& config, const CostModel& cost, const AxisTargets& targets);
// A line for the user about a schedule that was named, where it is not the default for its policy's time; else empty.
std::string ScheduleNote(const Config& config, const CostModel& cost, const std::string& name);
// The actions that the controller and the schedule work with; the dense action is always among them. `sol`, `hull` and `random` have the bundle's action
// set. `uniform`, `entropy`, and all under axis targets, have every KV density with every variant.
std::vector<Action> ScheduleActions(const Config& config, const std::string& name, const AxisTargets& targets);
// The actions in their order, each once.
std::vector<Action> Once(const std::vector<Action>& actions);

}  // namespace sol_rt
