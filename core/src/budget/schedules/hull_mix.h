// Error diffusion between the two neighbouring corners of the hull around a step's allowance: what `hull` is, and what `sol` begins with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "budget/controller/controller.h"
#include "budget/hull/hull.h"

namespace sol_rt {

// Deals a run's steps out to a cheap and a dear action, so that their mean cost is the allowance, however the steps are chosen. It does not make up for
// deviations itself: a cheaper action than these two would lose more than the dearer ones gained.
class HullMix {
 public:
  // `hull` has the controller's actions, in their order. Both outlive the mix.
  HullMix(Controller& controller, std::shared_ptr<Hull> hull) : controller_(controller), hull_(std::move(hull)) {}

  // Finds the two actions of the step at a context. A second call for the same step changes nothing.
  void Find(int64_t context);
  // The side that shares a read with the round, where the host has moved the budget and only the other side does; else `dear`. Budgets hold as without it.
  bool WithRound(bool dear, const StepSeen& seen);
  // Gives the step to the dear action or the cheap one. Returns the place of the action to run: this one, or the nearest that is allowed.
  size_t Give(bool dear, int64_t context);

  size_t cheap() const { return cheap_; }
  size_t dear() const { return dear_; }
  double share() const { return share_; }                        // of steps that the dear action gets, 0 to 1
  bool mixes() const { return 0.0 < share_ && share_ < 1.0; }    // false where one action alone has the allowance
  double owed() const;                                           // dear steps that are due; `hull` takes one as soon as 1 is
  static bool IsDue(double owed) { return owed >= 1.0 - 1e-9; }

 private:
  Controller& controller_;
  std::shared_ptr<Hull> hull_;
  size_t cheap_ = 0, dear_ = 0;
  double share_ = 1.0;
  double gap_ = 0.0;     // cost of the dear action over the cheap one, in dense steps
  double carry_ = 0.5;   // dear steps that are due from the steps before, were they hull's
  double debt_ = 0.0;    // cost of the dear steps that hull would have taken and that were not, in dense steps
};

}  // namespace sol_rt
