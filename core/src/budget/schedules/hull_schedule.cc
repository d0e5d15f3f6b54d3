// `hull`: the two neighbouring actions of the measured lower hull in turn, whatever the text. It needs no policy.
#include <utility>

#include "budget/schedules/hull_mix.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

class HullSchedule final : public Schedule {
 public:
  HullSchedule(Controller& controller, std::shared_ptr<Hull> hull) : controller_(controller), mix_(controller, std::move(hull)) {}

  Action Choose(const StepSeen& seen) override {
    if (controller_.dense_only()) return controller_.dense();
    mix_.Find(seen.context);
    return controller_.actions()[mix_.Give(mix_.WithRound(HullMix::IsDue(mix_.owed()), seen), seen.context)];
  }

 private:
  Controller& controller_;
  HullMix mix_;
};

}  // namespace

std::unique_ptr<Schedule> MakeHullSchedule(Controller& controller, std::shared_ptr<Hull> hull) {
  return std::make_unique<HullSchedule>(controller, std::move(hull));
}

}  // namespace sol_rt
