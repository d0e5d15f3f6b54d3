#include "budget/governor.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "base/error.h"
#include "base/text/number_text.h"

namespace sol_rt {
namespace {

constexpr double kBatteryFull = 0.5, kBatteryEmpty = 0.15;  // levels at which the highest and the lowest budget is allowed
constexpr double kHot = 0.95, kCool = 0.8;                  // headroom from which on the budget falls, and up to which it may rise
constexpr double kRateSlack = 0.05;                         // share by which the rate may miss
constexpr double kStepDown = 0.05, kStepUp = 0.025;         // change of the budget by one reading
constexpr int32_t kPatience = 3;                            // readings in a row that must allow a rise
constexpr double kSmoothing = 0.25;                         // weight of a new rate in the running mean

std::optional<double> Known(const std::optional<double>& value) { return value && std::isnan(*value) ? std::nullopt : value; }

void Require(bool good, const char* name, double value, const char* expected) {
  if (!good) UsageFault(std::string("governor: ") + name + ": got " + NumberText(value) + ", expected " + expected);
}

}  // namespace

void GovernorSettings::Check() const {
  Require(std::isfinite(lowest), "lowest", lowest, "a finite number");
  Require(std::isfinite(highest), "highest", highest, "a finite number");
  if (wanted_rate) Require(std::isfinite(*wanted_rate), "wanted_rate", *wanted_rate, "a finite number");
  Require(0 <= lowest && lowest <= highest && highest <= 1, "lowest", lowest, "0 <= lowest <= highest <= 1");
  if (wanted_rate) Require(*wanted_rate > 0, "wanted_rate", *wanted_rate, "a number over 0");
}

GovernorState NextBudget(const GovernorState& state, const GovernorReading& reading, const GovernorSettings& settings) {
  const double lowest = settings.lowest, highest = settings.highest;
  const double budget = std::min(std::max(state.budget, lowest), highest);
  const std::optional<double> battery = Known(reading.battery), headroom = Known(reading.headroom), rate = Known(reading.tokens_per_second);

  // what the battery allows
  double share = 1.0;
  if (battery && !reading.charging) share = std::min(std::max((*battery - kBatteryEmpty) / (kBatteryFull - kBatteryEmpty), 0.0), 1.0);
  const double ceiling = share < 1 ? lowest + (highest - lowest) * share : highest;  // the formula may round to less than `highest`

  // the budget at which the wanted rate is reached: a step takes time in proportion to its budget
  double dense_rate = state.dense_rate;
  const double measured = rate && *rate > 0 && std::isfinite(*rate) ? *rate * budget : 0.0;  // tokens over no time have no rate
  if (measured > 0) {  // a rate at no cost says nothing about dense steps
    dense_rate = dense_rate == 0 ? measured : dense_rate + kSmoothing * (measured - dense_rate);
  }
  double enough = std::numeric_limits<double>::infinity();
  if (settings.wanted_rate && dense_rate > 0) enough = dense_rate / *settings.wanted_rate;

  const bool too_much = budget > ceiling || budget * (1 - kRateSlack) > enough;
  const bool too_hot = headroom && *headroom >= kHot;
  if (too_much || too_hot) {
    const double step = kStepDown * (headroom && *headroom >= 1 ? 2 : 1);
    return {std::max(lowest, budget - step), dense_rate, 0};
  }

  const double raised = budget + kStepUp;
  const bool may_rise = budget < highest && (share == 1.0 || budget + 2 * kStepUp <= ceiling) && raised * (1 + kRateSlack) <= enough &&
                        (!headroom || *headroom <= kCool);
  const int32_t calm = may_rise ? state.calm + 1 : 0;
  if (calm < kPatience) return {budget, dense_rate, calm};
  return {std::min(highest, raised), dense_rate, 0};
}

}  // namespace sol_rt
