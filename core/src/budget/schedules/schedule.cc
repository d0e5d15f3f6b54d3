// The names by which commands know schedules, and what each of them needs.
#include "budget/schedules/schedule.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>

#include "base/error.h"
#include "base/text/number_text.h"

namespace sol_rt {
namespace {

constexpr const char* kFixed = "fixed:";
constexpr double kMostPolicyShare = 0.03;  // of a dense step's time: a dearer policy costs more than it gains

bool IsFixed(const std::string& name) { return name.rfind(kFixed, 0) == 0; }

class ConstantSchedule final : public Schedule {
 public:
  explicit ConstantSchedule(const Action& action) : action_(action) {}
  Action Choose(const StepSeen&) override { return action_; }

 private:
  Action action_;
};

// Time of the policy's run in dense steps; 0 where costs are bytes.
double PolicyShare(const Config& config, const CostModel& cost) {
  return config.policy && cost.InMilliseconds() ? cost.Policy() / cost.Step(config.dense, kReferenceContext) : 0.0;
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
  if (name == "hull" || name == "sol") {
    if (controller.axis_targets() != nullptr) {
      UsageFault("--schedule " + name + ": holds a budget, a rate or a loss; use uniform for targets on the axes");
    }
    if (name == "sol" && (!config.policy || policy == nullptr)) {
      UsageFault("--schedule sol: this bundle has no policy; use hull, or train one with `sol-rt train`");
    }
    if (hull == nullptr) {
      UsageFault("--schedule " + name + ": no losses of this bundle's actions were measured; use uniform, or export the model with calibration");
    }
    if (name == "hull") return MakeHullSchedule(controller, std::move(hull));
    return MakePolicySchedule(controller, std::move(hull), *config.policy, *policy);
  }
  if (name == "uniform") return MakeUniformSchedule(controller);
  if (name == "entropy") return MakeEntropySchedule(controller);
  if (name == "random") return MakeRandomSchedule(controller, seed);
  UsageFault("--schedule: got " + Brief(name) + ", expected one of sol, hull, uniform, entropy, random, fixed:TAG, dense");
}

bool IsConstant(const std::string& name) { return name == "dense" || IsFixed(name); }

const char* DefaultSchedule(const Config& config, const CostModel& cost, const AxisTargets& targets) {
  if (!config.LossesMeasured() || targets.Any()) return "uniform";
  return config.policy && PolicyShare(config, cost) <= kMostPolicyShare ? "sol" : "hull";
}

std::string ScheduleNote(const Config& config, const CostModel& cost, const std::string& name) {
  const double share = PolicyShare(config, cost);
  if (name != "sol" || share <= kMostPolicyShare) return "";
  return "schedule sol: a run of the policy takes " + ShortNumberText(std::round(share * 100)) + "% of a dense step's time; hull, the default here, needs none";
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
  if (name == "uniform" || name == "entropy" || targets.Any()) {
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
