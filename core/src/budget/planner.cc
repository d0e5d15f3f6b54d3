// Makes one generation's controller and schedule.
#include "budget/planner.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text/number_text.h"
#include "budget/controller/controller.h"
#include "budget/hull/hull.h"
#include "budget/hull/losses.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

constexpr const char* kOwn = "own";        // name of a host's schedule that has none
constexpr double kDefaultMaxLoss = 0.005;  // the `max_loss` that applies if nothing is asked for

class RunPlanner final : public Planner {
 public:
  RunPlanner(const Config& config, std::string name, const PromptRun& prompt, std::unique_ptr<Controller> controller,
             std::unique_ptr<sol_rt::Schedule> schedule, std::string fixed)
      : name_(std::move(name)), dense_(config.dense), losses_(config), prompt_(prompt), controller_(std::move(controller)), schedule_(std::move(schedule)), fixed_(std::move(fixed)) {}

  const PolicyQuestion* Question(const StepSeen& seen) override { return schedule_->Question(seen); }
  Action Choose(const StepSeen& seen) override { return schedule_->Choose(seen); }

  // `hull` may mix its actions in blocks, as long as the controller allows each step. The others look at every token.
  int64_t Repeats(const Action& action, int64_t context, int64_t most) override {
    if (schedule_->ChoosesEachStep()) return 1;
    if (!fixed_.empty() || controller_->dense_only()) return most;
    return name_ == "hull" ? controller_->Repeats(action, context, most) : 1;
  }

  Charge Record(const Action& action, int64_t context) override {
    if (taken_.empty()) first_context_ = context;
    const auto found = std::find_if(taken_.begin(), taken_.end(), [&](const auto& entry) { return entry.first == action; });
    if (found == taken_.end()) {
      taken_.emplace_back(action, 1);
    } else {
      ++found->second;
    }
    return controller_->Record(action, context);
  }

  void SetBudget(double budget) override {
    RequireSettable("budget");
    controller_->SetBudget(budget);
  }

  void SetTokensPerSecond(double rate) override {
    RequireSettable("tokens_per_second");
    controller_->SetTokensPerSecond(rate);
  }

  const PromptRun& Prompt() const override { return prompt_; }
  const std::string& Schedule() const override { return name_; }
  double Achieved() const override { return controller_->Achieved(); }
  double Requested() const override {
    return !fixed_.empty() && name_.rfind("fixed:", 0) == 0 ? Achieved() : controller_->Requested().value_or(Achieved());
  }
  double Asked(int64_t context) const override { return controller_->Budget() ? Requested() : std::min(1.0, controller_->Allowance(context)); }
  bool Floored() const override { return controller_->floored(); }
  std::optional<double> FastestRate(int64_t context) override { return controller_->FastestRate(context); }

  std::optional<double> ExpectedLoss() const override {
    const int64_t steps = controller_->steps(), middle = first_context_ + (steps + 1) / 2;  // the first token took no decode step
    double sum = losses_.At(dense_, middle);
    for (const auto& [action, count] : taken_) sum += losses_.At(action, middle) * static_cast<double>(count);
    const double loss = prompt_.loss + sum / static_cast<double>(std::max<int64_t>(steps, 1));
    return std::isnan(loss) ? std::nullopt : std::optional(loss);
  }

 private:
  void RequireSettable(const std::string& what) const {
    if (!fixed_.empty()) UsageFault(what + ": cannot change the actions of this run: " + fixed_ + "; start another one");
  }

  std::string name_;
  Action dense_;
  ActionLosses losses_;
  PromptRun prompt_;
  std::unique_ptr<Controller> controller_;
  std::unique_ptr<sol_rt::Schedule> schedule_;
  std::string fixed_;  // why there is no budget to set; empty where there is one
  std::vector<std::pair<Action, int64_t>> taken_;  // actions with their steps, in the order of their first step
  int64_t first_context_ = 0;
};

// Takes the recorded actions, step by step.
class ReplaySchedule final : public Schedule {
 public:
  ReplaySchedule(Controller& controller, std::vector<ReplayedStep> steps) : controller_(controller), steps_(std::move(steps)) {}
  bool ChoosesEachStep() const override { return true; }
  Action Choose(const StepSeen& seen) override {
    if (seen.step < 0 || static_cast<size_t>(seen.step) >= steps_.size()) UsageFault("replay: the trace has no more steps");
    const ReplayedStep& step = steps_[static_cast<size_t>(seen.step)];
    controller_.SetPolicyRuns(step.policy);
    return step.action;
  }

 private:
  Controller& controller_;
  std::vector<ReplayedStep> steps_;
};

class HostSchedule final : public Schedule {
 public:
  HostSchedule(Controller& controller, OwnSchedule choose) : controller_(controller), choose_(std::move(choose)) {}
  bool ChoosesEachStep() const override { return true; }
  Action Choose(const StepSeen& seen) override { return controller_.actions().at(choose_(seen, controller_)); }

 private:
  Controller& controller_;
  OwnSchedule choose_;
};

bool KeepsLoss(const std::string& schedule) { return schedule == "hull" || schedule == "sol"; }

// Request of the dial, with the default if the dial asks for nothing.
Request RequestOf(const Config& config, const Dial& dial, const std::string& name) {
  Request request{dial.budget.value_or(1.0), {dial.kv_density, dial.channel_density, dial.bits}, dial.tokens_per_second, dial.max_loss};
  if (request.max_loss && !(*request.max_loss >= 0.0 && *request.max_loss <= 10.0)) {
    UsageFault("--max-loss: got " + NumberText(*request.max_loss) + ", expected a rise of perplexity from 0 to 10, such as 0.01 or 1%");
  }
  const bool other = request.axis_targets.Any() || request.tokens_per_second || request.max_loss;
  if (IsConstant(name) && (request.budget != 1.0 || other)) {
    UsageFault("schedule " + name + ": fixes the action; leave out budget, kv_density, channel_density, bits, rate and loss");
  }
  if (!dial.budget && !other && config.LossesMeasured() && KeepsLoss(name)) request.max_loss = kDefaultMaxLoss;
  if (request.max_loss && (dial.own || (dial.schedule && !dial.schedule->empty())) && !KeepsLoss(name)) {
    UsageFault("--max-loss: the schedule " + name + " keeps no loss; leave out --schedule, or give --budget");
  }
  return request;
}

// A share of the loss that is allowed, or that the budget's steps are expected to have, is the prompt's.
PromptRun PromptOf(const Config& config, const Dial& dial, const Request& request, const std::string& name, Hull* hull) {
  if (!dial.prompt) return {config.dense, 0, 0.0};
  if (dial.prefill) return FixedPrompt(config, *dial.prompt, *dial.prefill);
  double allowed = 0.0;
  if (hull != nullptr && KeepsLoss(name)) {
    if (request.max_loss) {
      allowed = std::log1p(*request.max_loss);
    } else if (dial.budget) {
      allowed = hull->LossAt(request.budget, dial.prompt->tokens);
    }
  }
  return ChoosePrompt(config, *dial.prompt, kPromptShare * std::max(allowed, 0.0));
}

}  // namespace

std::unique_ptr<Planner> MakePlanner(const Config& config, std::shared_ptr<const CostModel> cost, const Dial& dial, PolicyRunner* policy) {
  const AxisTargets targets{dial.kv_density, dial.channel_density, dial.bits};
  const bool named = dial.schedule && !dial.schedule->empty();
  // an own schedule works on the bundle's actions and keeps no loss, whatever it is called
  const std::string name = dial.own ? kOwn : named ? dial.schedule->c_str() : DefaultSchedule(config, *cost, targets);
  Request request = RequestOf(config, dial, name);
  std::shared_ptr<Hull> hull;
  const auto actions_of = [&](const std::string& schedule, const AxisTargets& held) {
    return dial.actions.empty() ? ScheduleActions(config, schedule, held) : dial.actions;
  };
  if (config.LossesMeasured()) hull = std::make_shared<Hull>(Once(actions_of("hull", {})), *cost, ActionLosses(config));
  const PromptRun prompt = PromptOf(config, dial, request, name, hull.get());
  if (request.max_loss && !dial.prefill && prompt.loss > 0.0) request.max_loss = std::expm1(std::log1p(*request.max_loss) - prompt.loss);
  std::vector<Action> actions = actions_of(name, targets);
  if (!targets.Any()) actions = Once(actions);
  auto controller = MakeController(std::move(actions), std::move(cost), request, request.max_loss ? hull : nullptr, name == "sol");
  std::unique_ptr<Schedule> schedule;
  if (dial.own) {
    schedule = std::make_unique<HostSchedule>(*controller, dial.own);
  } else {
    schedule = MakeSchedule(config, name, *controller, dial.seed, std::move(hull), policy);
  }
  std::string fixed;
  if (IsConstant(name)) fixed = name + " fixes them";
  return std::make_unique<RunPlanner>(config, dial.own && named ? *dial.schedule : name, prompt, std::move(controller), std::move(schedule), std::move(fixed));
}

std::unique_ptr<Planner> MakeReplayPlanner(const Config& config, std::shared_ptr<const CostModel> cost, const std::string& schedule,
                                           std::vector<ReplayedStep> steps, double budget, const PromptRun& prompt) {
  for (const auto& [action, policy] : steps) {
    if (config.variants.count(action.Variant()) == 0) {
      UsageFault("replay: " + action.Tag() + " is in the trace, its variant is not in the bundle");
    }
  }
  Request request;
  request.budget = budget;
  auto controller = MakeController(ScheduleActions(config, "random", {}), std::move(cost), request, nullptr, schedule == "sol");
  auto replay = std::make_unique<ReplaySchedule>(*controller, std::move(steps));
  return std::make_unique<RunPlanner>(config, schedule, prompt, std::move(controller), std::move(replay),
                                      "a replay runs the trace's actions");
}

}  // namespace sol_rt
