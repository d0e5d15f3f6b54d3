// The governor: moves the budget between two bounds, as battery, heat and speed ask (docs/reference/decode-loop.md section 8).
#pragma once

#include <cstdint>
#include <optional>

namespace sol_rt {

// Settings of the governor. Budgets are shares of the dense cost, 0 to 1.
struct GovernorSettings {
  double lowest = 0.4, highest = 1.0;  // bounds of the budget
  std::optional<double> wanted_rate;   // tokens per second to keep

  // Throws SOL_ERROR_USAGE for values out of range.
  void Check() const;
};

// Readings of a device. Nothing and NaN stand for what the device does not report.
struct GovernorReading {
  std::optional<double> battery;            // level, 0 to 1
  bool charging = false;                    // whether the device is plugged in
  std::optional<double> headroom;           // thermal headroom: 1 where the device throttles, less where it is cooler
  std::optional<double> tokens_per_second;  // since the last reading
};

// State of the governor between readings.
struct GovernorState {
  double budget;            // to hold; at first the highest
  double dense_rate = 0.0;  // running mean of rate times budget, the rate that dense steps would have; 0 before the first rate
  int32_t calm = 0;         // readings in a row that allowed a rise
};

// The state after a reading; its budget is inside the bounds. Everything that asks for less is followed at once, by one step. The budget rises by one
// smaller step where for some readings in a row nothing has spoken against it.
GovernorState NextBudget(const GovernorState& state, const GovernorReading& reading, const GovernorSettings& settings);

}  // namespace sol_rt
