#include "budget/hull/lower_hull.h"

#include <algorithm>

namespace sol_rt {
namespace {

// Positive if the way from a over b to c turns left.
double Turn(const Point& a, const Point& b, const Point& c) {
  return (b.first - a.first) * (c.second - a.second) - (b.second - a.second) * (c.first - a.first);
}

}  // namespace

void KeepLowerHull(std::vector<Point>& points) {
  std::sort(points.begin(), points.end());
  size_t corners = 0;
  for (size_t index = 0; index < points.size(); ++index) {
    const Point point = points[index];
    if (corners > 0 && point.first == points[corners - 1].first) continue;  // the lower of two at one cost came first
    while (corners > 1 && Turn(points[corners - 2], points[corners - 1], point) <= 0) --corners;
    points[corners++] = point;
  }
  points.resize(corners);
}

void KeepFallingHull(std::vector<Point>& points) {
  KeepLowerHull(points);
  const auto best = std::min_element(points.begin(), points.end(), [](const Point& a, const Point& b) { return a.second < b.second; });
  points.erase(best + 1, points.end());
}

}  // namespace sol_rt
