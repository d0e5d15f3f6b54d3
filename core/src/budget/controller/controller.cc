// Base of both controllers: answers the questions of a schedule, and counts the cost of the steps.
#include "budget/controller/controller.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"

namespace sol_rt {
namespace {

Settings Shares(const Action& action, const Action& dense) {
  return {action.kv_density(), action.channel_density(), static_cast<double>(action.bits) / dense.bits};
}

}  // namespace

Controller::Controller(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, double policy_cost)
    : actions_(std::move(actions)),
      cost_(std::move(cost)),
      policy_cost_(policy_cost),
      costs_(actions_, *cost_, policy_cost),
      excess_(actions_.size()),
      allowed_(actions_.size()) {
  if (std::find(actions_.begin(), actions_.end(), dense()) == actions_.end()) {
    UsageFault("controller: the dense action " + dense().Tag() + " is not among the actions to choose from");
  }
  for (const Action& action : actions_) settings_.push_back(Shares(action, dense()));
}

std::optional<double> Controller::FastestRate(int64_t context) {
  if (!cost_->InMilliseconds()) return std::nullopt;
  return 1000.0 / costs_.At(context).low;
}

size_t Controller::NearestAllowed(size_t index, int64_t context) {
  if (Allows(index, context)) return index;
  const double* costs = RelativeCosts(context);
  const std::vector<char>& allowed = Allowed(context);
  size_t nearest = 0;
  double least = std::numeric_limits<double>::infinity();
  for (size_t other = 0; other < allowed.size(); ++other) {
    const double distance = std::abs(costs[other] - costs[index]);
    if (allowed[other] && distance < least) {
      nearest = other;
      least = distance;
    }
  }
  return nearest;
}

Charge Controller::Record(const Action& action, int64_t context) {
  const StepCosts& costs = costs_.At(context);
  const auto found = std::find(actions_.begin(), actions_.end(), action);
  double cost;
  if (found == actions_.end()) {  // a fixed action or a replayed one
    cost = cost_->Step(action, context) + policy_cost_;
    Book(cost, Shares(action, dense()), costs);
  } else {
    const auto index = static_cast<size_t>(found - actions_.begin());
    cost = costs.costs[index];
    Book(cost, settings_[index], costs);
  }
  return {cost, cost / costs.dense};
}

const std::vector<char>& Controller::Least() {
  const double least = *std::min_element(excess_.begin(), excess_.end());
  const double limit = least + kCostEpsilon * std::max(1.0, least);
  for (size_t index = 0; index < excess_.size(); ++index) allowed_[index] = excess_[index] <= limit;
  return allowed_;
}

}  // namespace sol_rt
