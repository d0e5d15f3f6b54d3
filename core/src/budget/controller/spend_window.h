// The window arithmetic of both controllers: what was spent, what was allowed, and how far the two may be apart (docs/reference/decode-loop.md section 2).
#pragma once

#include <algorithm>
#include <cstdint>

namespace sol_rt {

// The spend of one quantity over the steps so far, in the quantity's own unit.
struct SpendWindow {
  int64_t steps = 0;
  double spent = 0.0, allowed = 0.0;
  double full = 0.0;  // what dense steps would have spent

  // spent - allowed; negative where less was spent than allowed.
  double Deviation() const { return spent - allowed; }

  // Largest allowed |deviation| after one more step, which would spend `next` if it were dense.
  double HalfWidth(double next) const {
    constexpr double kSteps = 1.25;     // half width at first, in dense steps: 1.25 / 64 < 0.02
    constexpr int64_t kFrom = 64;       // steps after which the window grows
    constexpr double kGrowth = 0.0075;  // dense steps that each further step adds: less than 0.02, so long runs end closer
    const int64_t count = steps + 1;
    const double total = full + next;
    return total / static_cast<double>(count) * (kSteps + kGrowth * static_cast<double>(std::max<int64_t>(0, count - kFrom)));
  }

  void Add(double spent_now, double allowed_now, double full_now) {
    ++steps;
    spent += spent_now;
    allowed += allowed_now;
    full += full_now;
  }
};

}  // namespace sol_rt
