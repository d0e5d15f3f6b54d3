// `sol`: `hull`'s two actions, of which the policy gives the dear one to the steps that it helps most. Between KV densities alone, and where there is one
// action, it is `hull`, and pays for no policy.
#include <algorithm>
#include <utility>

#include "budget/policy/policy_inputs.h"
#include "budget/policy/rank_history.h"
#include "budget/schedules/hull_mix.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

constexpr double kStrength = 24.0;  // so that no row of cheap steps, or of dear ones, is longer than hull's by over 12

// Error diffusion as in `hull`, with the rank of the dear action's advantage among the last steps added to what is due. Half of the ranks are below one
// half, so the mean cost is hull's. Where the policy sees no difference between steps, `sol` is `hull`, action for action.
class PolicySchedule final : public Schedule {
 public:
  PolicySchedule(Controller& controller, std::shared_ptr<Hull> hull, const PolicySpec& spec, PolicyRunner& policy)
      : controller_(controller),
        policy_(policy),
        mix_(controller, std::move(hull)),
        fresh_(spec.scalars, spec.horizon),
        inputs_(fresh_),
        ranks_(spec.actions.size()) {
    for (const Action& action : controller.actions()) {
      const auto found = std::find(spec.actions.begin(), spec.actions.end(), action);
      logit_of_.push_back(found == spec.actions.end() ? -1 : found - spec.actions.begin());
    }
  }

  // None where one action alone has the allowance, two differ in KV density alone, or the policy has no logit for one of them.
  const PolicyQuestion* Question(const StepSeen& seen) override {
    if (controller_.dense_only()) return nullptr;
    if (asked_ == seen.step) return &question_;
    if (seen.step > recorded_) inputs_ = fresh_;  // dense steps went by
    controller_.SetPolicyRuns(true);
    mix_.Find(seen.context);
    if (!Orders(mix_.cheap(), mix_.dear())) {
      controller_.SetPolicyRuns(false);
      mix_.Find(seen.context);
      return nullptr;
    }
    if (seen.step != next_) first_ = seen.step;  // the run was rewound, or steps went by without the policy
    next_ = seen.step + 1;
    if (!begun_) {
      policy_.Reset();
      begun_ = true;
    }
    const std::vector<float>& scalars = inputs_.At(seen.step - first_, seen.context, seen.token, seen.distribution, Budget());
    question_ = {seen.hidden, seen.token, &scalars, inputs_.previous(), inputs_.position()};
    asked_ = seen.step;
    return &question_;
  }

  Action Choose(const StepSeen& seen) override {
    if (controller_.dense_only()) return controller_.dense();
    const PolicyQuestion* const question = Question(seen);
    bool dear = HullMix::IsDue(mix_.owed());
    if (question != nullptr) {
      const double rank = ranks_.Add(policy_.Decide(*question), logit_of_[mix_.cheap()], logit_of_[mix_.dear()]);
      const bool wanted = HullMix::IsDue(mix_.owed() + kStrength * mix_.share() * (1.0 - mix_.share()) * (rank - 0.5));
      if (wanted != dear && controller_.Allows(wanted ? mix_.dear() : mix_.cheap(), seen.context)) dear = wanted;
    }
    const size_t place = mix_.Give(mix_.WithRound(dear, seen), seen.context);
    inputs_.Record(logit_of_[place], controller_.RelativeCosts(seen.context)[place]);
    asked_ = -1;
    recorded_ = seen.step + 1;
    return controller_.actions()[place];
  }

 private:
  bool Orders(size_t cheap, size_t dear) const {
    const std::vector<Action>& actions = controller_.actions();
    return mix_.mixes() && logit_of_[cheap] >= 0 && logit_of_[dear] >= 0 && !actions[cheap].SharesRead(actions[dear]);
  }

  // Budget that the policy gets: this step's. Under a rate or a loss: the budget of the steps so far.
  double Budget() const {
    const std::optional<double> budget = controller_.Budget();
    return budget ? *budget : controller_.Requested().value_or(1.0);
  }

  Controller& controller_;
  PolicyRunner& policy_;
  HullMix mix_;
  std::vector<int64_t> logit_of_;  // [A], place among the policy's actions; -1 for an action without a logit
  bool begun_ = false;
  PolicyInputs fresh_;  // as a run of the policy begins: after dense steps, as after the prompt
  PolicyInputs inputs_;
  RankHistory ranks_;
  int64_t first_ = 0, next_ = 0;  // the step at which the row of steps with the policy began, and the row's next
  int64_t recorded_ = 0;          // the step after the last that `inputs_` knows
  PolicyQuestion question_{};
  int64_t asked_ = -1;  // the step of `question_`; -1 once it was answered
};

}  // namespace

std::unique_ptr<Schedule> MakePolicySchedule(Controller& controller, std::shared_ptr<Hull> hull, const PolicySpec& spec, PolicyRunner& policy) {
  return std::make_unique<PolicySchedule>(controller, std::move(hull), spec, policy);
}

}  // namespace sol_rt
