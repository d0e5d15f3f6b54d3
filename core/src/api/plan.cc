// Plans of the C interface: a controller and a schedule without a model.
#include <memory>
#include <string>
#include <vector>

#include "api/border.h"
#include "api/costs.h"
#include "api/options.h"
#include "base/error.h"
#include "budget/planner.h"
#include "budget/schedules/schedule.h"
#include "engine/distribution.h"

using sol_rt::Guard;
using sol_rt::RequireHandle;
using sol_rt::RequirePointer;
using sol_rt::UsageFault;

namespace {

// A policy of the host's.
class AskedPolicy final : public sol_rt::PolicyRunner {
 public:
  AskedPolicy(const sol_rt::PolicySpec& spec, sol_decide decide, void* user)
      : PolicyRunner("of the host", spec.scalars.size()), logits_(spec.actions.size()), decide_(decide), user_(user) {}

  void See(size_t hidden_size) { hidden_size_ = hidden_size; }
  void Reset() override { fresh_ = 1; }

 private:
  const std::vector<float>& Run(const sol_rt::PolicyQuestion& question) override {
    const std::vector<float>& scalars = *question.scalars;
    const sol_policy_inputs inputs{sizeof(sol_policy_inputs), question.token, question.hidden, hidden_size_, scalars.data(), scalars.size(),
                                   question.previous_action, question.step, fresh_};
    fresh_ = 0;
    if (decide_(user_, &inputs, logits_.data()) != 0) throw sol_rt::Error(SOL_ERROR_HOST, "the host's policy asked to stop");
    return logits_;
  }

  std::vector<float> logits_;
  sol_decide decide_;
  void* user_;
  size_t hidden_size_ = 0;
  int32_t fresh_ = 1;
};

}  // namespace

struct sol_plan {
  std::shared_ptr<const sol_rt::Config> config;
  std::unique_ptr<AskedPolicy> policy;
  bool asks_schedule = false;    // of the host
  std::vector<float> alike;      // logits of steps whose own are not known, once there was one
  sol_rt::Distribution unknown;  // theirs
  std::unique_ptr<sol_rt::Planner> planner;
  std::string action;  // what the last `sol_step` points to
};

namespace {

std::unique_ptr<sol_plan> MakePlan(const sol_costs& costs, const sol_plan_options& given) {
  auto made = std::make_unique<sol_plan>();
  made->config = costs.config;
  const sol_rt::Config& config = *made->config;
  sol_rt::Dial dial = sol_rt::DialOf(config, nullptr, sol_rt::ReadStruct(given.options, sol_rt::DefaultOptions(), "sol_generate_options"));
  dial.actions = sol_rt::ActionsOf(given.actions, given.num_actions);
  if (config.policy && given.decide != nullptr) {
    made->policy = std::make_unique<AskedPolicy>(*config.policy, given.decide, given.decide_user);
  }
  if (config.policy && given.decide == nullptr && dial.schedule == "sol") UsageFault("sol_plan_create: a plan asks the host: sol needs `decide`");
  made->asks_schedule = static_cast<bool>(dial.own);
  made->planner = sol_rt::MakePlanner(config, costs.found.cost, dial, made->policy.get());
  return made;
}

sol_rt::Distribution DistributionOf(sol_plan& plan, const sol_plan_seen& seen) {
  const auto vocabulary = static_cast<size_t>(plan.config->model.vocab_size);
  const size_t count = seen.logits == nullptr ? vocabulary : seen.num_logits;
  if (count < 1 || count > vocabulary || seen.token < 0 || static_cast<size_t>(seen.token) >= count) {
    UsageFault("sol_plan_step: got token " + std::to_string(seen.token) + " of " + std::to_string(count) + " logits, expected one of at most " +
               std::to_string(vocabulary) + " tokens");
  }
  if (seen.logits == nullptr) {
    if (plan.planner->Schedule() == "entropy") UsageFault("sol_plan_step: the schedule entropy needs logits");
    if (plan.alike.empty()) {
      plan.alike.resize(vocabulary);
      plan.unknown = sol_rt::MakeDistribution(plan.alike.data(), static_cast<int32_t>(vocabulary));
    }
    return plan.unknown;
  }
  const sol_rt::Distribution distribution = sol_rt::MakeDistribution(seen.logits, static_cast<int32_t>(count));
  if (!distribution.finite()) throw sol_rt::Error(SOL_ERROR_NUMERIC, "sol_plan_step: a logit is not finite");
  return distribution;
}

void Step(sol_plan& plan, const sol_plan_seen* given, sol_step* filled) {
  sol_rt::RequireSized(filled, "sol_step");
  sol_rt::RequireSized(given, "sol_plan_seen");
  const sol_plan_seen seen = sol_rt::ReadStruct(given, sol_plan_seen{}, "sol_plan_seen");
  sol_rt::RequireContext(seen.context);
  if (seen.step < 0) UsageFault("sol_plan_step: got the step " + std::to_string(seen.step) + ", expected 0 or more");
  const int32_t width = plan.config->model.hidden_size;
  if (plan.asks_schedule && seen.hidden != nullptr && seen.hidden_size != static_cast<size_t>(width)) {  // `choose` is told the config's
    UsageFault("sol_plan_step: hidden_size: got " + std::to_string(seen.hidden_size) + ", expected " + std::to_string(width));
  }
  if (plan.policy) plan.policy->See(seen.hidden == nullptr ? 0 : seen.hidden_size);
  const sol_rt::Action action = plan.planner->Choose({seen.context, seen.token, seen.hidden, DistributionOf(plan, seen), seen.step});
  const sol_rt::Charge charge = plan.planner->Record(action, seen.context);
  plan.action = action.Tag();
  sol_step step{};
  step.action = plan.action.c_str();
  step.context = seen.context;
  step.cost = charge.cost;
  step.relative_cost = charge.relative;
  step.achieved_budget = plan.planner->Achieved();
  step.requested_budget = plan.planner->Requested();
  step.floored = plan.planner->Floored() ? 1 : 0;
  sol_rt::FillStruct(step, filled);
}

}  // namespace

extern "C" {

sol_error* sol_plan_create(const sol_costs* costs, const sol_plan_options* options, sol_plan** plan) {
  return Guard([&] {
    RequirePointer(plan, "sol_plan_create: plan");
    *plan = nullptr;
    RequireHandle(costs, "sol_plan_create: costs");
    *plan = MakePlan(*costs, sol_rt::ReadStruct(options, sol_plan_options{}, "sol_plan_options")).release();
  });
}

void sol_plan_release(sol_plan* plan) { delete plan; }

sol_error* sol_plan_step(sol_plan* plan, const sol_plan_seen* seen, sol_step* step) {
  return Guard([&] {
    RequireHandle(plan, "sol_plan_step");
    Step(*plan, seen, step);
  });
}

sol_error* sol_plan_set_budget(sol_plan* plan, double budget) {
  return Guard([&] {
    RequireHandle(plan, "sol_plan_set_budget");
    plan->planner->SetBudget(budget);
  });
}

sol_error* sol_plan_set_tokens_per_second(sol_plan* plan, double rate) {
  return Guard([&] {
    RequireHandle(plan, "sol_plan_set_tokens_per_second");
    plan->planner->SetTokensPerSecond(rate);
  });
}

}  // extern "C"
