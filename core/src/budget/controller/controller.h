// Reports to a schedule which actions are allowed, and books what each step cost. A is the number of actions.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "budget/controller/spend_window.h"
#include "budget/cost/step_costs.h"
#include "budget/cost_model.h"
#include "budget/planner.h"

namespace sol_rt {

constexpr double kCostEpsilon = 1e-9;  // relative difference below which two costs count as equal

// KV density, channel density and bits: of an action as shares of the dense action's, or of a request as a caller writes them.
using Settings = std::array<double, 3>;

// Mean settings to hold; an axis without a target stays at its full value.
struct AxisTargets {
  std::optional<double> kv_density, channel_density, bits;
  bool Any() const { return kv_density || channel_density || bits; }
  // Options of the axes that have a target, for errors: `--kv-density/--bits`.
  std::string Flags() const;
};

class Controller {
 public:
  // `actions` are what schedules choose from, in the order of every [A] array here. The dense action is among them. An action may come twice.
  // `policy_cost` is the cost of the policy's run that each step pays for, in the cost model's unit.
  // Throws SOL_ERROR_USAGE if the dense action is missing.
  Controller(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, double policy_cost);
  virtual ~Controller() = default;

  const std::vector<Action>& actions() const { return actions_; }
  const CostModel& cost() const { return *cost_; }
  const Action& dense() const { return cost_->dense(); }
  // Targets that an axis controller holds; nullptr for a budget, a rate or a loss.
  virtual const AxisTargets* axis_targets() const { return nullptr; }
  // True if only the dense action is allowed, at every step until the budget changes. The policy is then not run, and steps do not pay for it.
  virtual bool dense_only() const { return false; }

  // True once the host has moved the budget or the rate: nobody can expect the actions of a run alone.
  virtual bool moved() const { return false; }

  // Says whether the next step runs the policy: where the schedule `sol` holds a budget, a rate or a loss, costs include a run of it or leave it out.
  virtual void SetPolicyRuns(bool runs) { (void)runs; }

  // Questions that a schedule asks before a step. Arrays are valid until the next call with another context, `Allowed` until its next call.

  // Cost of each action in dense steps, the policy's run included: [A].
  const double* RelativeCosts(int64_t context) { return costs_.At(context).relative; }
  // Tokens per second of the cheapest action; nothing if costs are not in milliseconds.
  std::optional<double> FastestRate(int64_t context);
  // Cost in dense steps that this step should aim for, the policy's run included.
  virtual double Target(int64_t context) = 0;
  // Cost in dense steps that this step may have on average, whatever was spent before.
  virtual double Allowance(int64_t context) = 0;
  // Marks the actions that keep the promise, [A]. If none does: the actions that miss it least, at least one.
  virtual const std::vector<char>& Allowed(int64_t context) = 0;
  // `Allowed(context)[index]`, but faster: as a rule that action is inside its window, and no other is looked at.
  bool Allows(size_t index, int64_t context) { return IsInside(index, context) || Allowed(context)[index]; }
  // `index` if that action is allowed, else the allowed action whose cost is nearest to its cost.
  size_t NearestAllowed(size_t index, int64_t context);

  // Steps of the action in a row, 1 to `most`, that are allowed from this context on; 1 where that is not known.
  virtual int64_t Repeats(const Action& action, int64_t context, int64_t most) {
    (void)action, (void)context, (void)most;
    return 1;
  }

  // Books a decode step; `context` is the number of tokens in the cache before it.
  Charge Record(const Action& action, int64_t context);

  // Changes that a host makes between steps.

  // Holds another budget or rate from the next step on, in place of what was held. What the steps so far were allowed stays as it is, but where the
  // cheapest action cost more, that counts. Throws SOL_ERROR_USAGE for values out of range, for a rate without measured costs, and under axis
  // targets.
  virtual void SetBudget(double budget) = 0;
  virtual void SetTokensPerSecond(double rate) = 0;
  // The budget that the next step holds; nothing under a rate, a loss or axis targets.
  virtual std::optional<double> Budget() const = 0;

  // Totals of the steps so far.

  int64_t steps() const { return spend_.steps; }
  double Achieved() const { return spend_.full != 0 ? spend_.spent / spend_.full : 1.0; }
  // The budget that was asked for. Where it changed, and under a rate or a loss: what the steps so far were allowed, as a share of their dense costs.
  // Nothing under axis targets.
  virtual std::optional<double> Requested() const = 0;
  // True if, at some step so far, even the cheapest action cost more than was asked for.
  bool floored() const { return floored_; }

 protected:
  virtual bool IsInside(size_t index, int64_t context) = 0;
  virtual void Book(double cost, const Settings& settings, const StepCosts& costs) = 0;
  // Marks where the excesses in `excess_` are smallest: where one is 0, those that are 0.
  const std::vector<char>& Least();

  std::vector<Action> actions_;
  std::shared_ptr<const CostModel> cost_;
  double policy_cost_;
  StepCostTable costs_;
  std::vector<Settings> settings_;  // [A], as shares of the dense action's
  SpendWindow spend_;
  bool floored_ = false;
  std::vector<double> excess_;  // [A]
  std::vector<char> allowed_;   // [A]
};

class Hull;

// Request to a controller: at most one of the four. A budget of 1 asks for nothing.
struct Request {
  double budget = 1.0;
  AxisTargets axis_targets;
  std::optional<double> tokens_per_second, max_loss;
};

// Throws SOL_ERROR_USAGE for values out of range, for more than one request, for a rate without measured costs, for a loss without a hull, and for
// targets that no mix of the actions has. `hull` may be null; `policy_cost` says whether steps pay for a run of the policy.
std::unique_ptr<Controller> MakeController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const Request& request,
                                           std::shared_ptr<Hull> hull, bool policy_cost);

std::unique_ptr<Controller> MakeAxisController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const AxisTargets& targets,
                                               bool policy_cost);

}  // namespace sol_rt
