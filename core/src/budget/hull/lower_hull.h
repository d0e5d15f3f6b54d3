// The lower convex hull of points: what two of them in turn can reach at best.
#pragma once

#include <cstddef>
#include <utility>
#include <vector>

namespace sol_rt {

using Point = std::pair<double, double>;  // as (cost, loss)

// Reorders `points` and cuts them to the corners of their lower hull, in ascending order of cost. Uses no other memory.
void KeepLowerHull(std::vector<Point>& points);
// The same, from the cheapest corner to the one of least loss.
void KeepFallingHull(std::vector<Point>& points);

}  // namespace sol_rt
