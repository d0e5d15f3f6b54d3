#include "budget/hull/losses.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace sol_rt {

LossCurve::LossCurve(const std::map<int64_t, double>& losses) {
  for (const auto& [context, loss] : losses) {
    contexts_.push_back(std::log(static_cast<double>(context)));
    losses_.push_back(loss);
  }
}

double LossCurve::At(int64_t context) const { return Interpolate(std::log(static_cast<double>(std::max<int64_t>(context, 1))), contexts_, losses_); }

ActionLosses::ActionLosses(const Config& config) {
  std::map<Action, std::map<int64_t, double>> measured;
  for (const ActionEntry& entry : config.actions) {
    if (!entry.losses.empty()) {
      measured[entry.action] = entry.losses;
    } else if (entry.loss) {
      measured[entry.action] = {{1, *entry.loss}};
    }
  }
  if (!measured.empty()) measured[config.dense] = {{1, 0.0}};  // losses are relative to dense
  for (const auto& [action, losses] : measured) curves_[action] = LossCurve(losses);
}

double ActionLosses::At(const Action& action, int64_t context) const {
  const auto found = curves_.find(action);
  return found == curves_.end() ? std::numeric_limits<double>::quiet_NaN() : found->second.At(context);
}

double Interpolate(double x, const std::vector<double>& xs, const std::vector<double>& ys) {
  const auto above = static_cast<size_t>(std::upper_bound(xs.begin(), xs.end(), x) - xs.begin());
  if (above == 0) return ys.front();
  if (above == xs.size()) return ys.back();
  const size_t below = above - 1;
  if (xs[below] == x) return ys[below];
  const double slope = (ys[above] - ys[below]) / (xs[above] - xs[below]);
  return slope * (x - xs[below]) + ys[below];
}

}  // namespace sol_rt
