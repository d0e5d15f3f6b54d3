// Holds a budget, a rate or a loss: turns it into limits and targets for single steps, in closed loop.
//
// Whatever a schedule prefers, only actions are allowed after which the total spend is still close to what was asked for, so that
// |achieved - requested| <= 0.02 holds at every step from the 64th on. docs/reference/decode-loop.md has the same arithmetic as pseudo-code.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/text/number_text.h"
#include "budget/controller/controller.h"
#include "budget/hull/hull.h"

namespace sol_rt {
namespace {

constexpr double kHorizon = 8;  // steps within which a deviation is to be made up

void CheckBudget(double budget) {
  if (!(std::isfinite(budget) && 0 <= budget && budget <= 1)) {
    UsageFault("--budget: got " + NumberText(budget) + ", expected a share of the dense cost from 0 to 1");
  }
}

void CheckRequest(const Request& request) {
  CheckBudget(request.budget);
  const std::pair<std::string, bool> wishes[] = {{"--budget", request.budget < 1.0},
                                                 {request.axis_targets.Flags(), request.axis_targets.Any()},
                                                 {"--tokens-per-second", request.tokens_per_second.has_value()},
                                                 {"--max-loss", request.max_loss.has_value()}};
  std::string names;
  int count = 0;
  for (const auto& [name, given] : wishes) {
    if (!given) continue;
    if (count++ > 0) names += " and ";
    names += name;
  }
  if (count > 1) UsageFault(names + " contradict each other: give one of them");
}

bool IsBelowFloor(double allowance, const StepCosts& costs) { return allowance < costs.low * (1 - kCostEpsilon); }

class BudgetController final : public Controller {
 public:
  BudgetController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const Request& request, std::shared_ptr<Hull> hull,
                   bool runs_policy)
      : Controller(std::move(actions), std::move(cost), 0.0),
        other_costs_(actions_, *cost_, cost_->Policy()),
        runs_policy_(runs_policy),
        budget_(request.budget) {
    if (request.tokens_per_second) step_limit_ = StepLimit(*request.tokens_per_second);
    if (request.max_loss) {
      hull_ = std::move(hull);
      nats_ = std::log1p(*request.max_loss);
    }
    FindDenseOnly();
  }

  bool dense_only() const override { return dense_only_; }
  bool moved() const override { return moved_; }

  void SetPolicyRuns(bool runs) override {
    const double policy_cost = runs && runs_policy_ && !dense_only_ ? cost_->Policy() : 0.0;  // dense steps alone need no policy
    if (policy_cost == policy_cost_) return;
    policy_cost_ = policy_cost;
    std::swap(costs_, other_costs_);
  }

  double Target(int64_t context) override {
    const StepCosts& costs = costs_.At(context);
    const double wanted = AllowanceOf(costs) - spend_.Deviation() / kHorizon;
    return std::min(std::max(wanted, costs.low), costs.high) / costs.dense;
  }

  double Allowance(int64_t context) override {
    const StepCosts& costs = costs_.At(context);
    return AllowanceOf(costs) / costs.dense;
  }

  const std::vector<char>& Allowed(int64_t context) override {
    const size_t count = actions_.size();
    if (dense_only_) {
      for (size_t index = 0; index < count; ++index) allowed_[index] = actions_[index] == dense();
      return allowed_;
    }
    const StepCosts& costs = costs_.At(context);
    const double allowance = AllowanceOf(costs);
    if (IsBelowFloor(allowance, costs)) {
      const double limit = costs.low * (1 + kCostEpsilon);
      for (size_t index = 0; index < count; ++index) allowed_[index] = costs.costs[index] <= limit;
      return allowed_;
    }
    const double deviation = spend_.Deviation(), half_width = spend_.HalfWidth(costs.dense);
    for (size_t index = 0; index < count; ++index) {
      const double after = deviation + costs.costs[index] - allowance;
      excess_[index] = costs.useful[index] ? std::max(std::abs(after) - half_width, 0.0) : std::numeric_limits<double>::infinity();
    }
    return Least();
  }

  int64_t Repeats(const Action& action, int64_t context, int64_t most) override {
    const auto index = static_cast<size_t>(std::find(actions_.begin(), actions_.end(), action) - actions_.begin());
    if (index == actions_.size()) return 1;
    const SpendWindow before = spend_;
    int64_t count = 0;
    for (; count < most && (count == 0 || Allows(index, context + count)); ++count) {
      const StepCosts& costs = costs_.At(context + count);
      spend_.Add(costs.costs[index], AllowanceOf(costs), costs.dense);
    }
    spend_ = before;
    return count;
  }

  std::optional<double> Budget() const override { return step_limit_ || hull_ ? std::nullopt : std::optional<double>(budget_); }

  std::optional<double> Requested() const override {
    if ((changed_ || !Budget()) && spend_.full != 0) return spend_.allowed / spend_.full;
    return budget_;
  }

  void SetBudget(double budget) override {
    CheckBudget(budget);
    Change(budget, std::nullopt);
  }

  void SetTokensPerSecond(double rate) override { Change(1.0, StepLimit(rate)); }

 protected:
  bool IsInside(size_t index, int64_t context) override {
    const StepCosts& costs = costs_.At(context);
    const double allowance = AllowanceOf(costs);
    if (dense_only_ || !costs.useful[index] || IsBelowFloor(allowance, costs)) return false;
    return std::abs(spend_.Deviation() + costs.costs[index] - allowance) <= spend_.HalfWidth(costs.dense);
  }

  void Book(double cost, const Settings&, const StepCosts& costs) override {
    const double allowance = AllowanceOf(costs);
    spend_.Add(cost, allowance, costs.dense);
    served_ += dense_only_ ? allowance : std::max(allowance, costs.low);
    if (!dense_only_ && IsBelowFloor(allowance, costs)) floored_ = true;
  }

 private:
  void Change(double budget, std::optional<double> step_limit) {
    budget_ = budget;
    step_limit_ = step_limit;
    hull_.reset();
    spend_.allowed = served_;  // what a floor cost is not made up for
    changed_ = changed_ || spend_.steps > 0;
    moved_ = true;
    FindDenseOnly();
  }

  void FindDenseOnly() {
    dense_only_ = budget_ == 1.0 && !step_limit_ && !hull_;
    SetPolicyRuns(true);
  }

  // Allowed mean cost of a step, in the cost model's unit.
  double AllowanceOf(const StepCosts& costs) {
    if (step_limit_) return std::min(costs.dense + policy_cost_, *step_limit_);
    const double budget = hull_ ? hull_->CostAt(nats_, costs.context) : budget_;
    return budget * costs.dense;
  }

  // Milliseconds that a step may take.
  double StepLimit(double tokens_per_second) const {
    if (!(std::isfinite(tokens_per_second) && tokens_per_second > 0)) {
      UsageFault("--tokens-per-second: got " + NumberText(tokens_per_second) + ", expected a number over 0");
    }
    if (!cost_->InMilliseconds()) UsageFault("--tokens-per-second: no times measured on this device; run `sol-rt profile` first");
    return 1000.0 / tokens_per_second;
  }

  StepCostTable other_costs_;  // with a run of the policy where `costs_` has none, else without
  bool runs_policy_, dense_only_ = false;
  bool changed_ = false;  // whether something else was asked for at first
  bool moved_ = false;
  double budget_;
  std::optional<double> step_limit_;  // what the rate leaves for a step, in milliseconds
  std::shared_ptr<Hull> hull_;        // of max_loss
  double nats_ = 0.0;                 // that max_loss allows a token
  double served_ = 0.0;               // what the steps so far were allowed, or their cheapest action's cost where that is more
};

}  // namespace

std::unique_ptr<Controller> MakeController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const Request& request,
                                           std::shared_ptr<Hull> hull, bool policy_cost) {
  CheckRequest(request);
  if (request.axis_targets.Any()) return MakeAxisController(std::move(actions), std::move(cost), request.axis_targets, policy_cost);
  if (request.max_loss && hull == nullptr) {
    UsageFault("--max-loss: no losses of this bundle's actions were measured; leave it out, or export the model with calibration");
  }
  return std::make_unique<BudgetController>(std::move(actions), std::move(cost), request, std::move(hull), policy_cost);
}

}  // namespace sol_rt
