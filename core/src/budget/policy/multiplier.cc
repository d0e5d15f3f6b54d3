#include "budget/policy/multiplier.h"

#include <algorithm>
#include <cmath>

namespace sol_rt {
namespace {

constexpr size_t kMemory = 64;  // how many of the last steps the multiplier is computed from
constexpr double kEpsilon = 1e-9;

}  // namespace

double Multiplier::At(const double* logits, const double* costs, size_t count, double target) {
  Step step;
  if (steps_.size() == kMemory) {
    step = std::move(steps_.front());
    steps_.pop_front();
    for (const Edge& edge : step.edges) edges_.erase(std::lower_bound(edges_.begin(), edges_.end(), edge));
    step.edges.clear();
  }
  corners_.clear();
  for (size_t index = 0; index < count; ++index) corners_.emplace_back(costs[index], -logits[index]);
  KeepLowerHull(corners_);
  step.least = corners_.front().first;
  for (size_t index = 1; index < corners_.size(); ++index) {
    const Point &low = corners_[index - 1], &high = corners_[index];
    const Edge edge{(high.second - low.second) / (high.first - low.first), high.first - low.first};
    step.edges.push_back(edge);
    edges_.insert(std::upper_bound(edges_.begin(), edges_.end(), edge), edge);
  }
  steps_.push_back(std::move(step));
  if (edges_.empty()) return 0.0;
  double remaining = 0.0;
  for (const Step& each : steps_) remaining += target - each.least;
  size_t taken = 0;
  for (const auto& [slope, width] : edges_) {
    if (width / 2 > remaining) break;
    remaining -= width;
    ++taken;
  }
  return -Between(taken);
}

double Multiplier::Between(size_t count) const {
  const double beyond = kEpsilon + std::abs(count == 0 ? edges_.front().first : edges_.back().first) * kEpsilon;
  if (count == 0) return edges_.front().first - beyond;
  if (count == edges_.size()) return edges_.back().first + beyond;
  return (edges_[count - 1].first + edges_[count].first) / 2;
}

}  // namespace sol_rt
