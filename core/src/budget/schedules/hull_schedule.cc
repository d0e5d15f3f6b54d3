// `hull`: the two neighbouring actions of the measured lower hull in turn. It needs no policy.
#include <algorithm>
#include <utility>

#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

// Takes one of the two actions of the hull around the step's allowance, whatever the text. Error diffusion deals the two out, so that their mean cost
// is the allowance. The schedule does not make up for deviations itself: a cheaper action than these two would lose more than the dearer ones gained.
class HullSchedule final : public Schedule {
 public:
  HullSchedule(Controller& controller, std::shared_ptr<Hull> hull) : controller_(controller), hull_(std::move(hull)) {}

  Action Choose(const StepSeen& seen) override {
    if (controller_.dense_only()) return controller_.dense();
    const double allowance = controller_.Allowance(seen.context);
    const auto [low, high] = Around(allowance, seen.context);
    const double* costs = controller_.RelativeCosts(seen.context);
    const double gap = costs[high] - costs[low];
    const double share = gap > 0 ? (allowance - costs[low]) / gap : 1.0;
    carry_ += std::min(std::max(share, 0.0), 1.0);
    size_t index = low;
    if (carry_ >= 1.0 - 1e-9) {
      carry_ -= 1.0;
      index = high;
    }
    return controller_.actions()[controller_.NearestAllowed(index, seen.context)];
  }

 private:
  // Places of the two neighbouring corners of the hull around a relative cost.
  std::pair<size_t, size_t> Around(double cost, int64_t context) {
    const std::vector<Corner>& corners = hull_->Corners(context);
    for (size_t index = 1; index < corners.size(); ++index) {
      if (cost < corners[index].cost) return {corners[index - 1].place, corners[index].place};
    }
    return {corners.back().place, corners.back().place};
  }

  Controller& controller_;
  std::shared_ptr<Hull> hull_;
  double carry_ = 0.5;  // what error diffusion owes the dearer action, in steps
};

}  // namespace

std::unique_ptr<Schedule> MakeHullSchedule(Controller& controller, std::shared_ptr<Hull> hull) {
  return std::make_unique<HullSchedule>(controller, std::move(hull));
}

}  // namespace sol_rt
