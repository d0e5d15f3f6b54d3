#include "generate/live_dial.h"

#include <cmath>
#include <utility>

#include "base/error.h"
#include "base/text/number_text.h"

namespace sol_rt {

void LiveDial::Open(std::string fixed, bool milliseconds) {
  const std::lock_guard<std::mutex> lock(mutex_);
  fixed_ = std::move(fixed);
  milliseconds_ = milliseconds;
  budget_.reset();
  rate_.reset();
  open_ = true;
}

void LiveDial::Close() { open_ = false; }

void LiveDial::SetBudget(double budget) {
  if (!(budget >= 0 && budget <= 1)) UsageFault("--budget: got " + NumberText(budget) + ", expected a share of the dense cost from 0 to 1");
  const std::lock_guard<std::mutex> lock(mutex_);
  RequireMovable("--budget");
  budget_ = budget;
  rate_.reset();
}

void LiveDial::SetTokensPerSecond(double rate) {
  if (!(std::isfinite(rate) && rate > 0)) UsageFault("--tokens-per-second: got " + NumberText(rate) + ", expected a number over 0");
  const std::lock_guard<std::mutex> lock(mutex_);
  RequireMovable("--tokens-per-second");
  if (!milliseconds_) UsageFault("--tokens-per-second: no times measured on this device; run `sol-rt profile` first");
  rate_ = rate;
  budget_.reset();
}

bool LiveDial::TakeOver(Planner& planner) {
  std::optional<double> budget, rate;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    budget.swap(budget_);
    rate.swap(rate_);
  }
  if (budget) planner.SetBudget(*budget);
  if (rate) planner.SetTokensPerSecond(*rate);
  return budget || rate;
}

void LiveDial::RequireMovable(const char* flag) const {
  if (!open_) UsageFault(std::string(flag) + ": no generation is running; start one first");
  if (!fixed_.empty()) UsageFault(std::string(flag) + ": " + fixed_ + "; start another generation");
}

}  // namespace sol_rt
