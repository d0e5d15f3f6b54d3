// Picks the action of each decode step and books what it cost: a controller and a schedule for one generation.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "budget/cost_model.h"
#include "budget/prompt_run.h"
#include "bundle/config/config.h"
#include "engine/distribution.h"
#include "engine/policy_runner.h"

namespace sol_rt {

// Facts that a schedule gets before a step.
struct StepSeen {
  int64_t context;             // tokens in the cache before the step
  int32_t token;               // the token that the step is to process
  const float* hidden;         // [hidden] of the step before
  Distribution distribution;   // from which `token` was picked
  int64_t step;                // decode steps of the run before this one
  const std::vector<Action>* round = nullptr;  // what other sessions take in the same round; null for a step alone
};

class Controller;

// A schedule of the host's: returns the place of an action among the controller's.
using OwnSchedule = std::function<size_t(const StepSeen& seen, Controller& controller)>;

// At most one of budget, targets on the axes, tokens_per_second and max_loss.
struct Dial {
  std::optional<double> budget, kv_density, channel_density, bits, tokens_per_second, max_loss;
  std::optional<std::string> schedule;
  std::optional<uint64_t> seed;  // of the schedule `random`
  OwnSchedule own;               // in place of a named one; `schedule` is then the name under which it is reported
  std::vector<Action> actions;   // to choose among; empty for those of the schedule
  std::optional<PromptSeen> prompt;  // that the steps follow; without it what was read before them counts as dense
  std::optional<Action> prefill;     // runs it; without it the dial chooses

  // True if it asks for nothing but a schedule.
  bool IsEmpty() const { return !budget && !kv_density && !channel_density && !bits && !tokens_per_second && !max_loss; }
};

struct Charge {
  double cost;      // in the cost model's unit, the policy's run included
  double relative;  // the same in dense steps
};

class Planner {
 public:
  virtual ~Planner() = default;
  virtual const PolicyQuestion* Question(const StepSeen& seen) = 0;  // of the policy, before the step is chosen; null for none
  virtual Action Choose(const StepSeen& seen) = 0;
  // Steps in a row, 1 to `most`, that may take the action which `Choose` has just returned, without another choice.
  virtual int64_t Repeats(const Action& action, int64_t context, int64_t most) = 0;
  virtual Charge Record(const Action& action, int64_t context) = 0;
  // From the next step on, in place of what was held. Throws SOL_ERROR_USAGE for a value out of range, and under targets on the axes, `fixed:TAG`,
  // `dense` and a replay.
  virtual void SetBudget(double budget) = 0;
  virtual void SetTokensPerSecond(double rate) = 0;
  virtual const PromptRun& Prompt() const = 0;
  virtual const std::string& Schedule() const = 0;    // its name
  virtual double Achieved() const = 0;
  virtual double Requested() const = 0;               // under targets on the axes and `fixed:TAG`: what they came to
  virtual double Asked(int64_t context) const = 0;    // before the first step, at that context: what was asked for, or what a rate or a loss comes to
  virtual bool Floored() const = 0;
  virtual std::optional<double> FastestRate(int64_t context) = 0;  // tokens per second; nothing if costs are bytes
  // Mean over the steps recorded, each action's at the middle of the generation, and the prompt's; nothing if an action or the prompt's was not measured.
  virtual std::optional<double> ExpectedLoss() const = 0;
};

// `policy` may be null if the bundle has none; it outlives the planner, as `config` does. Throws SOL_ERROR_USAGE for a dial that contradicts itself, or that
// this bundle or device cannot hold.
std::unique_ptr<Planner> MakePlanner(const Config& config, std::shared_ptr<const CostModel> cost, const Dial& dial, PolicyRunner* policy);
struct ReplayedStep {
  Action action;
  bool policy;  // true if it paid for a run of the policy
};

// A replay of these steps in place of the dial, after this run of the prompt. `schedule` and `budget` are the trace's, `budget` 1 where it has none. Throws
// SOL_ERROR_USAGE for an action whose variant the bundle lacks.
std::unique_ptr<Planner> MakeReplayPlanner(const Config& config, std::shared_ptr<const CostModel> cost, const std::string& schedule,
                                           std::vector<ReplayedStep> steps, double budget, const PromptRun& prompt);

}  // namespace sol_rt
