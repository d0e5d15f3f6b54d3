// Expected loss of each action of a bundle, at any context, as the export measured it (docs/reference/bundle-details.md section 4).
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "bundle/action.h"
#include "bundle/config/config.h"

namespace sol_rt {

// Losses by context. Between two measured contexts the loss is linear in the logarithm of the context; beyond the first and the last it stays the same.
class LossCurve {
 public:
  LossCurve() = default;
  explicit LossCurve(const std::map<int64_t, double>& losses);  // one at least
  double At(int64_t context) const;

 private:
  std::vector<double> contexts_, losses_;  // logarithms of contexts in ascending order, nats
};

class ActionLosses {
 public:
  explicit ActionLosses(const Config& config);
  // Expected added loss over dense in nats per token; NaN if the action was not measured.
  double At(const Action& action, int64_t context) const;

 private:
  std::map<Action, LossCurve> curves_;
};

// The value at `x` of the line through the points, whose xs rise. Beyond the ends it stays the same.
double Interpolate(double x, const std::vector<double>& xs, const std::vector<double>& ys);

}  // namespace sol_rt
