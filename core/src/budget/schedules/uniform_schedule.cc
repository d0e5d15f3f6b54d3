// `uniform`: mixes the two nearest settings of each axis in fixed proportions. `entropy`: the same mix, with the dearer settings on the steps where
// the model was uncertain before.
#include <algorithm>
#include <cmath>
#include <limits>

#include "budget/schedules/axes.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

// Alternates between the two nearest settings on each axis.
//
// A single position u in [0, 1] turns the axes down one after the other, each to its lowest setting: bits, then KV density, then channel density,
// which loses most. u is where the mix's expected cost is the controller's target. Under axis targets each axis is at its own target instead. Error
// diffusion on each axis decides which of the two settings around its position a step takes.
class UniformSchedule : public Schedule {
 public:
  explicit UniformSchedule(Controller& controller) : controller_(controller), axes_(controller.actions()) {}

  Action Choose(const StepSeen& seen) override {
    if (controller_.dense_only()) return controller_.dense();
    const Settings wanted = Wanted(seen.context);
    Settings dealt;
    for (size_t axis = 0; axis < dealt.size(); ++axis) dealt[axis] = Deal(axis, wanted[axis]);
    size_t index = axes_.Nearest(dealt);
    if (controller_.axis_targets() == nullptr) {  // nearest in cost holds a budget; nearest in setting holds axis targets
      index = controller_.NearestAllowed(index, seen.context);
    } else if (!controller_.Allows(index, seen.context)) {
      index = NearestInSettings(index, controller_.Allowed(seen.context));
    }
    return controller_.actions()[index];
  }

 protected:
  double forward_ = 0.0;  // by how much of a turn the higher settings come early

 private:
  // One of the two levels around `position`; over the steps, their mean is the mean of the positions.
  double Deal(size_t axis, double position) {
    const auto [low, high, share] = axes_.Around(axis, position);
    if (share >= 1.0) return high;
    carry_[axis] += share;
    if (carry_[axis] < 1.0 - forward_ - 1e-9) return low;
    carry_[axis] -= 1.0;
    return high;
  }

  // The settings that this step aims for.
  Settings Wanted(int64_t context) {
    if (const AxisTargets* targets = controller_.axis_targets()) {
      const Settings& scale = axes_.scale();
      return {targets->kv_density.value_or(scale[0]), targets->channel_density.value_or(scale[1]), targets->bits.value_or(scale[2])};
    }
    const double target = controller_.Target(context);
    const std::vector<double>& expected = axes_.ExpectedCosts(controller_.RelativeCosts(context));
    const double wanted = std::min(std::max(target, expected.front()), expected.back());
    const auto above = static_cast<size_t>(std::lower_bound(expected.begin(), expected.end(), wanted) - expected.begin());
    if (above == 0) return axes_.Positions(0.0);
    const double below = expected[above - 1], rise = expected[above] - below;
    return axes_.Positions((static_cast<double>(above - 1) + (wanted - below) / rise) / Axes::kGrid);
  }

  size_t NearestInSettings(size_t index, const std::vector<char>& allowed) const {
    const std::vector<Settings>& settings = axes_.settings();
    size_t nearest = 0;
    double least = std::numeric_limits<double>::infinity();
    for (size_t other = 0; other < settings.size(); ++other) {
      double distance = 0.0;
      for (size_t axis = 0; axis < settings[other].size(); ++axis) distance += std::abs(settings[other][axis] - settings[index][axis]);
      if (allowed[other] && distance < least) {
        nearest = other;
        least = distance;
      }
    }
    return nearest;
  }

  Controller& controller_;
  Axes axes_;
  // what error diffusion owes each axis; thirds apart, so that the axes don't all turn cheap on the same step
  Settings carry_{0.0, 1.0 / 3, 2.0 / 3};
};

// Running z-score of a sequence: the distance of a value from the running mean, in standard deviations.
class RunningZScore {
 public:
  // The z-score of `value` among the values before it, from -2 to 2; 0 while they do not vary. Then adds it to the running mean and variance. The
  // first values weigh alike, later ones decay.
  double Update(double value) {
    constexpr double kDecay = 0.95;  // weight of the past when the running mean takes a new value
    constexpr double kLimit = 2.0;   // standard deviations
    const double deviation = std::sqrt(variance_);
    const double score = deviation > 0 ? (value - mean_) / deviation : 0.0;
    weight_ = kDecay * weight_ + 1.0;
    const double share = 1.0 / weight_, step = value - mean_;
    mean_ += share * step;
    variance_ = (1 - share) * (variance_ + share * step * step);
    return std::min(std::max(score, -kLimit), kLimit);
  }

 private:
  double mean_ = 0.0, variance_ = 0.0, weight_ = 0.0;
};

// A hand-made rule: what a policy has to beat. Uncertainty is the mean of two signals of the last step's distribution: its entropy in nats, and one
// minus the margin between its two likeliest tokens. High uncertainty brings forward the turn at which an axis takes its higher setting, low
// uncertainty puts it off. How often each setting comes is as in `uniform`.
class EntropySchedule final : public UniformSchedule {
 public:
  using UniformSchedule::UniformSchedule;

  Action Choose(const StepSeen& seen) override {
    constexpr double kGain = 0.5;  // turns by which an uncertainty of one standard deviation brings the higher setting forward
    const double entropy = entropy_.Update(seen.distribution.Entropy());
    const double closeness = closeness_.Update(1.0 - seen.distribution.Margin());
    forward_ = kGain * ((entropy + closeness) / 2);
    return UniformSchedule::Choose(seen);
  }

 private:
  RunningZScore entropy_, closeness_;
};

}  // namespace

std::unique_ptr<Schedule> MakeUniformSchedule(Controller& controller) { return std::make_unique<UniformSchedule>(controller); }
std::unique_ptr<Schedule> MakeEntropySchedule(Controller& controller) { return std::make_unique<EntropySchedule>(controller); }

}  // namespace sol_rt
