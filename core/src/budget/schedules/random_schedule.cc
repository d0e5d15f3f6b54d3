// `random`: draws actions so that their expected cost is the target.
#include <algorithm>
#include <cmath>
#include <random>

#include "base/philox.h"
#include "budget/schedules/schedule.h"

namespace sol_rt {
namespace {

// Draws actions with probability proportional to exp(-rate * cost), with the rate at which the expected cost is the target. Under axis targets all
// allowed actions are equally likely. A draw depends on seed and context alone.
class RandomSchedule final : public Schedule {
 public:
  RandomSchedule(Controller& controller, std::optional<uint64_t> seed)
      : controller_(controller), random_(seed ? *seed : std::random_device()(), RandomWords::Stream::kSchedule) {}

  Action Choose(const StepSeen& seen) override {
    if (controller_.dense_only()) return controller_.dense();
    const std::vector<char>& allowed = controller_.Allowed(seen.context);
    candidates_.clear();
    for (size_t index = 0; index < allowed.size(); ++index) {
      if (allowed[index]) candidates_.push_back(index);
    }
    const double number = Uniform(random_.At(seen.context, 0));
    const size_t count = candidates_.size();
    const size_t drawn = controller_.axis_targets() == nullptr ? Tilted(seen.context, number) : static_cast<size_t>(number * static_cast<double>(count));
    return controller_.actions()[candidates_[drawn]];
  }

 private:
  // A place among the candidates, from the distribution of largest entropy whose expected cost is the target. If no distribution has that
  // expectation, from the nearest possible one. The rate is found by bisection.
  size_t Tilted(int64_t context, double number) {
    const double target = controller_.Target(context);
    const double* costs = controller_.RelativeCosts(context);
    double low = -500.0, high = 500.0;
    for (int step = 0; step < 40; ++step) {
      const double rate = (low + high) / 2;
      (Shares(costs, rate) > target ? low : high) = rate;
    }
    double total = 0.0;
    for (double& share : shares_) share = total += share;
    const auto drawn = static_cast<size_t>(std::upper_bound(shares_.begin(), shares_.end(), number * total) - shares_.begin());
    return std::min(drawn, shares_.size() - 1);
  }

  // Fills `shares_` with the candidates' probabilities under a rate, and returns their expected cost.
  double Shares(const double* costs, double rate) {
    shares_.clear();
    for (const size_t index : candidates_) shares_.push_back(-rate * costs[index]);
    const double largest = *std::max_element(shares_.begin(), shares_.end());
    double sum = 0.0, expected = 0.0;
    for (double& share : shares_) sum += share = std::exp(share - largest);
    for (size_t place = 0; place < shares_.size(); ++place) {
      shares_[place] /= sum;
      expected += shares_[place] * costs[candidates_[place]];
    }
    return expected;
  }

  Controller& controller_;
  const RandomWords random_;
  std::vector<size_t> candidates_;  // places of the allowed actions
  std::vector<double> shares_;      // of the candidates
};

}  // namespace

std::unique_ptr<Schedule> MakeRandomSchedule(Controller& controller, std::optional<uint64_t> seed) {
  return std::make_unique<RandomSchedule>(controller, seed);
}

}  // namespace sol_rt
