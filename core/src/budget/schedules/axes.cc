#include "budget/schedules/axes.h"

#include <algorithm>
#include <cmath>
#include <set>

namespace sol_rt {
namespace {

Settings SettingsOf(const Action& action) { return {action.kv_density(), action.channel_density(), static_cast<double>(action.bits)}; }

}  // namespace

Axes::Axes(const std::vector<Action>& actions) {
  for (size_t axis = 0; axis < levels_.size(); ++axis) {
    std::set<double> levels;
    for (const Action& action : actions) levels.insert(SettingsOf(action)[axis]);
    levels_[axis].assign(levels.begin(), levels.end());
    scale_[axis] = levels_[axis].back();
  }
  for (const Action& action : actions) {
    Settings settings = SettingsOf(action);
    for (size_t axis = 0; axis < settings.size(); ++axis) settings[axis] /= scale_[axis];
    settings_.push_back(settings);
  }
  Settings corner = scale_;
  path_[3] = corner;
  size_t place = 3;
  for (const size_t axis : {2, 0, 1}) {  // bits, KV density, channel density
    corner[axis] = levels_[axis].front();
    path_[--place] = corner;
  }
}

Settings Axes::Positions(double u) const {
  const double at = u * static_cast<double>(path_.size() - 1);
  const size_t below = std::min(static_cast<size_t>(at), path_.size() - 2);
  Settings positions;
  for (size_t axis = 0; axis < positions.size(); ++axis) {
    const double start = path_[below][axis], end = path_[below + 1][axis];
    positions[axis] = start + (at - static_cast<double>(below)) * (end - start);
  }
  return positions;
}

Axes::Levels Axes::Around(size_t axis, double position) const {
  const std::vector<double>& levels = levels_[axis];
  const auto found = static_cast<size_t>(std::lower_bound(levels.begin(), levels.end(), position) - levels.begin());
  const size_t above = std::min(found, levels.size() - 1);
  const double low = levels[above == 0 ? 0 : above - 1], high = levels[above];
  return {low, high, high == low ? 1.0 : std::min(std::max((position - low) / (high - low), 0.0), 1.0)};
}

size_t Axes::Nearest(const Settings& settings) {
  const auto known = found_.find(settings);
  if (known != found_.end()) return known->second;
  size_t nearest = 0;
  double least = INFINITY;
  for (size_t index = 0; index < settings_.size(); ++index) {
    double distance = 0.0;
    for (size_t axis = 0; axis < settings.size(); ++axis) distance += std::abs(settings_[index][axis] - settings[axis] / scale_[axis]);
    if (distance < least) {
      nearest = index;
      least = distance;
    }
  }
  found_[settings] = nearest;
  return nearest;
}

const std::vector<double>& Axes::ExpectedCosts(const double* costs) {
  if (ends_.empty()) {
    for (int point = 0; point <= kGrid; ++point) {
      for (const auto& share : MixAt(Positions(static_cast<double>(point) / kGrid))) shares_.push_back(share);
      ends_.push_back(shares_.size());
    }
    expected_.resize(ends_.size());
  }
  size_t at = 0;
  for (size_t point = 0; point < ends_.size(); ++point) {
    double cost = 0.0;
    for (; at < ends_[point]; ++at) cost += shares_[at].second * costs[shares_[at].first];
    expected_[point] = point == 0 ? cost : std::max(expected_[point - 1], cost);
  }
  return expected_;
}

// If each axis takes the two levels around its position independently.
Axes::Mix Axes::MixAt(const Settings& positions) {
  Mix mix;
  std::array<Levels, 3> around;
  for (size_t axis = 0; axis < around.size(); ++axis) around[axis] = Around(axis, positions[axis]);
  for (unsigned ups = 0; ups < 8; ++ups) {
    double share = 1.0;
    Settings settings;
    for (size_t axis = 0; axis < around.size(); ++axis) {
      const bool up = ups >> (2 - axis) & 1;
      share *= up ? around[axis].share : 1 - around[axis].share;
      settings[axis] = up ? around[axis].high : around[axis].low;
    }
    if (share > 0) mix[Nearest(settings)] += share;
  }
  return mix;
}

}  // namespace sol_rt
