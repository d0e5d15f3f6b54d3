#include "budget/hull/hull.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <utility>

#include "budget/hull/lower_hull.h"

namespace sol_rt {

Hull::Hull(std::vector<Action> actions, const CostModel& cost, ActionLosses losses)
    : actions_(std::move(actions)), costs_(actions_, cost), losses_(std::move(losses)) {
  dense_ = static_cast<size_t>(std::find(actions_.begin(), actions_.end(), cost.dense()) - actions_.begin());
}

const std::vector<Corner>& Hull::Corners(int64_t context) {
  if (last_ != context) {
    const int64_t first = context / kCostBlock * kCostBlock;
    if (first != first_) Compute(first);
    const double* row = &relative_[static_cast<size_t>(context - first) * actions_.size()];
    corners_ = members_;
    for (Corner& corner : corners_) corner.cost = row[corner.place];
    last_ = context;
  }
  return corners_;
}

double Hull::CostAt(double loss, int64_t context) {
  const std::vector<Corner>& corners = Corners(context);
  if (corners.front().loss <= loss) return corners.front().cost;
  for (size_t index = 1; index < corners.size(); ++index) {
    const Corner &cheap = corners[index - 1], &dear = corners[index];
    if (dear.loss <= loss) {
      const double share = (cheap.loss - loss) / (cheap.loss - dear.loss);
      return cheap.cost + share * (dear.cost - cheap.cost);
    }
  }
  return corners.back().cost;
}

double Hull::LossAt(double cost, int64_t context) {
  const std::vector<Corner>& corners = Corners(context);
  for (size_t index = 1; index < corners.size(); ++index) {
    const Corner &cheap = corners[index - 1], &dear = corners[index];
    if (cost < dear.cost) {
      const double share = dear.cost > cheap.cost ? std::max((cost - cheap.cost) / (dear.cost - cheap.cost), 0.0) : 0.0;
      return cheap.loss + share * (dear.loss - cheap.loss);
    }
  }
  return corners.back().loss;
}

void Hull::Compute(int64_t first) {
  const size_t count = actions_.size();
  relative_.resize(count * kCostBlock);
  costs_.Compute(first, kCostBlock, relative_.data());
  for (size_t row = 0; row < kCostBlock; ++row) {
    double* costs = &relative_[row * count];
    const double dense = costs[dense_];
    for (size_t index = 0; index < count; ++index) costs[index] /= dense;
  }
  const double* middle = &relative_[kCostBlock / 2 * count];
  const Point end{1.0, losses_.At(actions_[dense_], first + kCostBlock / 2)};
  std::map<Point, size_t> places{{end, dense_}};
  for (size_t index = 0; index < count; ++index) {
    const double loss = losses_.At(actions_[index], first + kCostBlock / 2);
    if (middle[index] < 1.0 && !std::isnan(loss)) places.emplace(Point{middle[index], loss}, index);
  }
  std::vector<Point> points;
  for (const auto& [point, place] : places) points.push_back(point);
  KeepFallingHull(points);
  members_.clear();
  for (const Point& point : points) members_.push_back({places.at(point), point.first, point.second});
  if (points.back() != end) members_.push_back({dense_, end.first, end.second});
  first_ = first;
}

}  // namespace sol_rt
