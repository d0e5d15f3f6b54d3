// The axes of an action set, and the path along which `uniform` turns them down.
//
// A path leads from the lowest settings (position 0) to dense (position 1). Each point of it stands for a mix of actions, whose mean settings are the
// point's.
#pragma once

#include <array>
#include <cstddef>
#include <map>
#include <utility>
#include <vector>

#include "budget/controller/controller.h"
#include "bundle/action.h"

namespace sol_rt {

class Axes {
 public:
  static constexpr int kGrid = 160;  // parts into which the path is cut: its mixes are computed at kGrid + 1 points

  explicit Axes(const std::vector<Action>& actions);

  const Settings& scale() const { return scale_; }                     // the highest level of each axis
  const std::vector<Settings>& settings() const { return settings_; }  // of each action as shares of the scale
  // The settings at share `u` of the path.
  Settings Positions(double u) const;
  // The two levels around `position` and the share of the higher one, so that their mean is `position`.
  struct Levels {
    double low, high, share;
  };
  Levels Around(size_t axis, double position) const;
  // Index of the action nearest to these settings.
  size_t Nearest(const Settings& settings);
  // Expected costs of the mixes at the points of the path, each the largest so far, so that they rise. `costs` are the actions'. Valid until the next
  // call.
  const std::vector<double>& ExpectedCosts(const double* costs);

 private:
  using Mix = std::map<size_t, double>;  // share of each action
  Mix MixAt(const Settings& positions);

  std::array<std::vector<double>, 3> levels_;  // the settings that occur on each axis, in ascending order
  Settings scale_;
  std::vector<Settings> settings_;
  std::array<Settings, 4> path_;  // corners from the lowest settings to dense; one axis changes between two of them
  std::map<Settings, size_t> found_;
  std::vector<size_t> ends_;                      // where each point's part of `shares_` ends; empty until the mixes are needed
  std::vector<std::pair<size_t, double>> shares_;  // actions and their shares, point by point
  std::vector<double> expected_;
};

}  // namespace sol_rt
