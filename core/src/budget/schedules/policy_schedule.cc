// `sol`: asks the bundle's policy, and charges its logits for cost so that the budget is held.
#include <limits>

#include "base/error.h"
#include "budget/policy/multiplier.h"
#include "budget/policy/policy_inputs.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

// Takes the allowed action with the largest value of logits - multiplier * relative cost. Under axis targets the multiplier is 0. If the policy does
// not know the dense action, that action comes after the policy's own, and is taken only where no other one is allowed.
class PolicySchedule final : public Schedule {
 public:
  PolicySchedule(Controller& controller, const PolicySpec& spec, PolicyRunner& policy)
      : controller_(controller),
        policy_(policy),
        known_(spec.actions.size()),
        fresh_(spec.scalars, spec.horizon),
        inputs_(fresh_),
        values_(controller.actions().size()) {}

  const PolicyQuestion* Question(const StepSeen& seen) override {
    if (controller_.dense_only()) return nullptr;
    if (asked_ == seen.step) return &question_;
    if (seen.step != next_) {  // the run was rewound, or steps went by without the policy
      if (seen.step > next_) inputs_ = fresh_;
      first_ = seen.step;
    }
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
    const PolicyQuestion* const question = Question(seen);
    if (question == nullptr) return controller_.dense();
    const std::vector<float>& logits = policy_.Decide(*question);
    asked_ = -1;
    for (size_t index = 0; index < values_.size(); ++index) values_[index] = index < known_ ? static_cast<double>(logits[index]) : -1e9;
    const double target = controller_.Target(seen.context);
    const double* costs = controller_.RelativeCosts(seen.context);
    if (controller_.axis_targets() == nullptr) {
      const double rate = multiplier_.At(values_.data(), costs, known_, target);
      for (size_t index = 0; index < known_; ++index) values_[index] -= rate * costs[index];
    }
    size_t best = Best(nullptr);
    if (!controller_.Allows(best, seen.context)) best = Best(controller_.Allowed(seen.context).data());
    inputs_.Record(best < known_ ? static_cast<int64_t>(best) : -1, costs[best]);
    return controller_.actions()[best];
  }

 private:
  // Budget that the policy gets: this step's. Under a rate or a loss: the budget of the steps so far.
  double Budget() const {
    const std::optional<double> budget = controller_.Budget();
    return budget ? *budget : controller_.Requested().value_or(1.0);
  }

  // Index of the largest value, among the allowed ones if `allowed` is given.
  size_t Best(const char* allowed) const {
    size_t best = 0;
    double largest = -std::numeric_limits<double>::infinity();
    for (size_t index = 0; index < values_.size(); ++index) {
      if ((allowed == nullptr || allowed[index]) && values_[index] > largest) {
        best = index;
        largest = values_[index];
      }
    }
    return best;
  }

  Controller& controller_;
  PolicyRunner& policy_;
  size_t known_;  // actions that the policy has logits for
  bool begun_ = false;
  PolicyInputs fresh_;  // as a run of the policy begins: after dense steps, as after the prompt
  PolicyInputs inputs_;
  int64_t first_ = 0, next_ = 0;  // the step at which the row of steps with the policy began, and the row's next
  PolicyQuestion question_{};
  int64_t asked_ = -1;  // the step of `question_`; -1 once it was answered
  Multiplier multiplier_;
  std::vector<double> values_;  // [A]
};

}  // namespace

std::unique_ptr<Schedule> MakePolicySchedule(Controller& controller, const PolicySpec& spec, PolicyRunner& policy) {
  return std::make_unique<PolicySchedule>(controller, spec, policy);
}

}  // namespace sol_rt
