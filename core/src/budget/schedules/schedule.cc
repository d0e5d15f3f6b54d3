// The names by which commands know schedules, and what each of them needs.
#include "budget/schedules/schedule.h"

#include <algorithm>
#include <set>
#include <tuple>

#include "base/error.h"

namespace sol_rt {
namespace {

constexpr const char* kFixed = "fixed:";
constexpr int64_t kContext = 512;  // tokens at which budgets in bytes are compared with those in milliseconds

bool IsFixed(const std::string& name) { return name.rfind(kFixed, 0) == 0; }

class ConstantSchedule final : public Schedule {
 public:
  explicit ConstantSchedule(const Action& action) : action_(action) {}
  Action Choose(const StepSeen&) override { return action_; }

 private:
  Action action_;
};

// The policy's range of budgets where costs are milliseconds. It was measured in bytes: each end but 0 and 1 moves to the budget at which `hull` is expected
// to lose as much. No budget is left if both come to one. Nor if, at a lower end over 0, less than the cheapest action's cost is left beside the policy's run,
// or `hull` would lose `gain_over_hull` or more by going without the time of that run.
std::optional<std::array<double, 2>> TimedBudgets(const Config& config, const CostModel& cost) {
  std::array<double, 2> range = config.policy->gain_budgets;
  const std::vector<Action> actions = Once(ScheduleActions(config, "hull", {}));
  Hull read(actions, *MakeBytesCost(config), ActionLosses(config)), here(actions, cost, ActionLosses(config));
  const int64_t context = std::min<int64_t>(kContext, config.model.max_context - 1);
  for (double& end : range) {
    if (0.0 < end && end < 1.0) end = here.CostAt(std::max(read.LossAt(end, context), 0.0), context);
  }
  const double low = range[0], rest = low - cost.Policy() / cost.Step(cost.dense(), context);
  const bool dear = rest < here.Corners(context).front().cost ||
                    here.LossAt(rest, context) - here.LossAt(low, context) >= config.policy->gain_over_hull;
  if (low >= range[1] || (low > 0.0 && dear)) return std::nullopt;
  return range;
}

std::string Listed(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

}  // namespace

std::unique_ptr<Schedule> MakeConstantSchedule(const Action& action) { return std::make_unique<ConstantSchedule>(action); }

std::unique_ptr<Schedule> MakeSchedule(const Config& config, const std::string& name, Controller& controller, std::optional<uint64_t> seed,
                                       std::shared_ptr<Hull> hull, PolicyRunner* policy) {
  if (name == "dense") return MakeConstantSchedule(controller.dense());
  if (IsFixed(name)) {
    const Action action = Action::Parse(name.substr(std::string(kFixed).size()));
    if (config.variants.count(action.Variant()) == 0) {
      UsageFault("--schedule " + name + ": no variant " + action.Variant() + " in this bundle; it has " + Listed(config.variant_order));
    }
    return MakeConstantSchedule(action);
  }
  if (name == "hull") {
    if (controller.axis_targets() != nullptr) {
      UsageFault("--schedule hull: holds a budget, a rate or a loss; use uniform for targets on the axes");
    }
    if (hull == nullptr) {
      UsageFault("--schedule hull: no losses of this bundle's actions were measured; use uniform, or export the model with calibration");
    }
    return MakeHullSchedule(controller, std::move(hull));
  }
  if (name == "uniform") return MakeUniformSchedule(controller);
  if (name == "entropy") return MakeEntropySchedule(controller);
  if (name == "random") return MakeRandomSchedule(controller, seed);
  if (name == "sol") {
    if (!config.policy || policy == nullptr) {
      UsageFault("--schedule sol: this bundle has no policy; use hull, or train one with `sol-rt train`");
    }
    return MakePolicySchedule(controller, *config.policy, *policy);
  }
  UsageFault("--schedule: got " + Brief(name) + ", expected one of sol, hull, uniform, entropy, random, fixed:TAG, dense");
}

bool IsConstant(const std::string& name) { return name == "dense" || IsFixed(name); }

std::optional<std::array<double, 2>> PolicyBudgets(const Config& config, const CostModel& cost) {
  if (!config.policy) return std::nullopt;
  if (!config.LossesMeasured()) return std::array<double, 2>{0.0, 1.0};
  if (config.policy->gain_over_hull <= 0) return std::nullopt;
  return cost.InMilliseconds() ? TimedBudgets(config, cost) : config.policy->gain_budgets;
}

std::string DefaultSchedule(const Config& config, const CostModel& cost, double budget, const AxisTargets& targets) {
  if (const auto range = PolicyBudgets(config, cost); range && (*range)[0] <= budget && budget <= (*range)[1]) return "sol";
  return config.LossesMeasured() && !targets.Any() ? "hull" : "uniform";
}

std::vector<Action> Once(const std::vector<Action>& actions) {
  std::vector<Action> once;
  for (const Action& action : actions) {
    if (std::find(once.begin(), once.end(), action) == once.end()) once.push_back(action);
  }
  return once;
}

std::vector<Action> ScheduleActions(const Config& config, const std::string& name, const AxisTargets& targets) {
  std::vector<Action> actions;
  if (name == "sol" && config.policy) {
    actions = config.policy->actions;
  } else if (name == "uniform" || name == "entropy" || targets.Any()) {
    std::set<int> kv_densities{100};
    for (const ActionEntry& entry : config.actions) kv_densities.insert(entry.action.kv);
    std::vector<const Variant*> variants;
    for (const std::string& key : config.variant_order) variants.push_back(&config.variants.at(key));
    std::stable_sort(variants.begin(), variants.end(), [](const Variant* a, const Variant* b) {
      return std::make_tuple(-a->bits, -a->channel_density) < std::make_tuple(-b->bits, -b->channel_density);
    });
    for (const Variant* variant : variants) {
      for (auto kv = kv_densities.rbegin(); kv != kv_densities.rend(); ++kv) {
        Action action;
        action.kv = *kv;
        action.channels = static_cast<int>(variant->channel_density * 100 + 0.5);
        action.bits = variant->bits;
        actions.push_back(action);
      }
    }
  } else {
    for (const ActionEntry& entry : config.actions) actions.push_back(entry.action);
  }
  if (std::find(actions.begin(), actions.end(), config.dense) == actions.end()) actions.push_back(config.dense);
  return actions;
}

}  // namespace sol_rt
