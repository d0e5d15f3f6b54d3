// The governor of the C interface.
#include "budget/governor.h"

#include <cmath>

#include "api/border.h"

namespace {

using namespace sol_rt;

// Places in `reserved` of what the state holds beside the budget.
constexpr int kDenseRate = 0, kCalm = 1;

std::optional<double> Given(double value) { return std::isnan(value) ? std::nullopt : std::optional<double>(value); }

sol_governor_settings DefaultSettings() {
  const GovernorSettings settings;
  return {sizeof(sol_governor_settings), settings.lowest, settings.highest, NAN};
}

sol_governor_reading DefaultReading() { return {sizeof(sol_governor_reading), NAN, -1, NAN, NAN}; }

GovernorSettings Checked(const sol_governor_settings* given) {
  const sol_governor_settings read = ReadStruct(given, DefaultSettings(), "settings");
  GovernorSettings settings;
  settings.lowest = read.lowest_budget;
  settings.highest = read.highest_budget;
  settings.wanted_rate = Given(read.tokens_per_second);
  settings.Check();
  return settings;
}

void RequireState(const sol_governor_state* state) {
  RequireSized(state, "state");
  if (state->size < sizeof(*state)) {
    UsageFault("state: got size " + std::to_string(state->size) + ", expected " + std::to_string(sizeof(*state)) + ", sizeof(sol_governor_state)");
  }
}

void Fill(const GovernorState& made, sol_governor_state* state) {
  state->budget = made.budget;
  for (double& number : state->reserved) number = 0.0;
  state->reserved[kDenseRate] = made.dense_rate;
  state->reserved[kCalm] = made.calm;
}

GovernorState Held(const sol_governor_state& state) {
  const double calm = state.reserved[kCalm];
  if (std::isnan(state.budget) || !(0 <= calm && calm <= 1e6)) {
    UsageFault("state: got numbers that no governor has; fill it with sol_governor_begin and keep it unchanged");
  }
  return {state.budget, state.reserved[kDenseRate], static_cast<int32_t>(calm)};
}

}  // namespace

extern "C" {

void sol_governor_settings_init(sol_governor_settings* settings, uint32_t size) { InitStruct(DefaultSettings(), settings, size); }

void sol_governor_reading_init(sol_governor_reading* reading, uint32_t size) { InitStruct(DefaultReading(), reading, size); }

sol_error* sol_governor_begin(const sol_governor_settings* settings, sol_governor_state* state) {
  return Guard([&] {
    RequireState(state);
    Fill({Checked(settings).highest}, state);
  });
}

sol_error* sol_governor_step(const sol_governor_settings* settings, const sol_governor_reading* reading, sol_governor_state* state) {
  return Guard([&] {
    RequireState(state);
    const GovernorSettings checked = Checked(settings);
    const sol_governor_reading read = ReadStruct(reading, DefaultReading(), "reading");
    Fill(NextBudget(Held(*state), {Given(read.battery), read.charging == 1, Given(read.thermal), Given(read.tokens_per_second)}, checked), state);
  });
}

}  // extern "C"
