// Runs curves through the C interface's governor, for runtime_tests/core/test_native_governor.py. Reads lines as runtime_tests/golden/governor.tsv has
// them, without budget and calm count, and writes the two for each; or the error's text.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>

#include "sol_rt.h"

namespace {

double Number(const std::string& text) { return text == "-" ? NAN : std::strtod(text.c_str(), nullptr); }

bool Told(sol_error* error) {
  if (error == nullptr) return false;
  std::printf("%d %s\n", sol_error_code(error), sol_error_message(error));
  sol_error_release(error);
  return true;
}

}  // namespace

int main() {
  sol_governor_settings settings;
  sol_governor_settings_init(&settings, sizeof settings);
  sol_governor_reading reading;
  sol_governor_reading_init(&reading, sizeof reading);
  sol_governor_state state;
  state.size = sizeof state;
  std::string line, last;
  while (std::getline(std::cin, line)) {
    std::istringstream fields(line);
    std::string curve, lowest, highest, wanted, battery, headroom, rate;
    fields >> curve >> lowest >> highest >> wanted >> battery >> reading.charging >> headroom >> rate;
    settings.lowest_budget = Number(lowest);
    settings.highest_budget = Number(highest);
    settings.tokens_per_second = Number(wanted);
    reading.battery = Number(battery);
    reading.thermal = Number(headroom);
    reading.tokens_per_second = Number(rate);
    if (curve != last && Told(sol_governor_begin(&settings, &state))) continue;
    last = curve;
    if (Told(sol_governor_step(&settings, &reading, &state))) continue;
    std::printf("%.17g %g\n", state.budget, state.reserved[1]);
  }
}
