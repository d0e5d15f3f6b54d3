// Holds a mean setting on each of the three axes instead of a budget. Each axis has a window of its own, in which the sum of the settings stays.
#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "base/error.h"
#include "base/text/number_text.h"
#include "budget/controller/controller.h"

namespace sol_rt {
namespace {

constexpr double kNearHull = 0.01;  // how far from any mix of actions the targets may lie, in shares of the dense settings

double Product(const Settings& a, const Settings& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
Settings Difference(const Settings& a, const Settings& b) { return {a[0] - b[0], a[1] - b[1], a[2] - b[2]}; }

// Index of the point whose product with `direction` is least.
size_t Lowest(const std::vector<Settings>& points, const Settings& direction) {
  size_t lowest = 0;
  for (size_t index = 1; index < points.size(); ++index) {
    if (Product(points[index], direction) < Product(points[lowest], direction)) lowest = index;
  }
  return lowest;
}

size_t NearestToOrigin(const std::vector<Settings>& points) {
  size_t nearest = 0;
  for (size_t index = 1; index < points.size(); ++index) {
    if (Product(points[index], points[index]) < Product(points[nearest], points[nearest])) nearest = index;
  }
  return nearest;
}

// Distance from the origin to the convex hull of the points, by Frank-Wolfe steps: an upper bound, at most about 0.005 too large.
double DistanceToHull(const std::vector<Settings>& points) {
  Settings nearest = points[NearestToOrigin(points)];
  for (int step = 0; step < 1000; ++step) {
    const Settings way = Difference(nearest, points[Lowest(points, nearest)]);
    const double gain = Product(nearest, way);
    if (gain < 1e-7) break;
    const double share = std::min(gain / Product(way, way), 1.0);
    nearest = Difference(nearest, {share * way[0], share * way[1], share * way[2]});
  }
  return std::sqrt(Product(nearest, nearest));
}

class AxisController final : public Controller {
 public:
  AxisController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const AxisTargets& targets, double policy_cost)
      : Controller(std::move(actions), std::move(cost), policy_cost), targets_(targets) {
    FindShares();
  }

  const AxisTargets* axis_targets() const override { return &targets_; }

  // Cost of the dearest action in dense steps: axis targets limit settings, not costs.
  double Target(int64_t context) override {
    const StepCosts& costs = costs_.At(context);
    return costs.high / costs.dense;
  }

  double Allowance(int64_t context) override { return Target(context); }

  const std::vector<char>& Allowed(int64_t) override {
    const double half_width = windows_[0].HalfWidth(1.0);  // the same on every axis
    for (size_t index = 0; index < actions_.size(); ++index) {
      double worst = 0.0;
      for (size_t axis = 0; axis < windows_.size(); ++axis) worst = std::max(worst, std::abs(After(axis, settings_[index])) - half_width);
      excess_[index] = worst;
    }
    return Least();
  }

  std::optional<double> Requested() const override { return std::nullopt; }
  void SetBudget(double) override { RefuseBudget(); }
  void SetTokensPerSecond(double) override { RefuseBudget(); }
  std::optional<double> Budget() const override { return std::nullopt; }

 protected:
  bool IsInside(size_t index, int64_t) override {
    const double half_width = windows_[0].HalfWidth(1.0);
    for (size_t axis = 0; axis < windows_.size(); ++axis) {
      if (!(std::abs(After(axis, settings_[index])) <= half_width)) return false;
    }
    return true;
  }

  void Book(double cost, const Settings& settings, const StepCosts& costs) override {
    spend_.Add(cost, cost, costs.dense);
    for (size_t axis = 0; axis < windows_.size(); ++axis) windows_[axis].Add(settings[axis], shares_[axis], 1.0);
  }

 private:
  [[noreturn]] void RefuseBudget() const {
    UsageFault("budget: this run holds " + targets_.Flags() + " instead; start a run with a budget");
  }

  double After(size_t axis, const Settings& settings) const { return windows_[axis].Deviation() + settings[axis] - shares_[axis]; }

  // The targets as shares of the dense settings; an axis without one gets the highest setting of the actions.
  void FindShares() {
    const std::tuple<const char*, const std::optional<double>&, double> axes[] = {
        {"--kv-density", targets_.kv_density, 1.0}, {"--channel-density", targets_.channel_density, 1.0}, {"--bits", targets_.bits, dense().bits}};
    for (size_t axis = 0; axis < shares_.size(); ++axis) {
      const auto& [flag, value, full] = axes[axis];
      double low = settings_[0][axis], high = low;
      for (const Settings& settings : settings_) {
        low = std::min(low, settings[axis]);
        high = std::max(high, settings[axis]);
      }
      low *= full;
      high *= full;
      if (!value) {
        shares_[axis] = high / full;
        continue;
      }
      if (!(std::isfinite(*value) && low - 1e-6 <= *value && *value <= high + 1e-6)) {
        UsageFault(std::string(flag) + ": got " + NumberText(*value) + ", expected " + ShortNumberText(low) + " to " + ShortNumberText(high) +
                   ", as this bundle has");
      }
      shares_[axis] = *value / full;
    }
    std::vector<Settings> points;
    for (const Settings& settings : settings_) points.push_back(Difference(settings, shares_));
    if (DistanceToHull(points) > kNearHull) {
      UsageFault(targets_.Flags() + ": no mix of this bundle's actions has these means; the nearest action is " +
                 actions_[NearestToOrigin(points)].Tag());
    }
  }

  AxisTargets targets_;
  Settings shares_{};  // the targets as shares of the dense settings
  std::array<SpendWindow, 3> windows_;
};

}  // namespace

std::string AxisTargets::Flags() const {
  const std::pair<const char*, bool> axes[] = {
      {"--kv-density", kv_density.has_value()}, {"--channel-density", channel_density.has_value()}, {"--bits", bits.has_value()}};
  std::string flags;
  for (const auto& [flag, given] : axes) {
    if (given) flags += (flags.empty() ? "" : "/") + std::string(flag);
  }
  return flags;
}

std::unique_ptr<Controller> MakeAxisController(std::vector<Action> actions, std::shared_ptr<const CostModel> cost, const AxisTargets& targets,
                                               bool policy_cost) {
  const double policy = policy_cost ? cost->Policy() : 0.0;
  return std::make_unique<AxisController>(std::move(actions), std::move(cost), targets, policy);
}

}  // namespace sol_rt
