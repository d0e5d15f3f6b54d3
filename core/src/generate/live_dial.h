// Requests of other threads to a running generation: a new budget or rate, and to end.
#pragma once

#include <atomic>
#include <mutex>
#include <optional>
#include <string>

#include "budget/planner.h"

namespace sol_rt {

class LiveDial {
 public:
  // Of the generation that begins. `fixed` says why its dial cannot be moved, or is empty.
  void Open(std::string fixed, bool milliseconds);
  void Close();
  bool is_open() const { return open_.load(); }

  // From any thread. Throw SOL_ERROR_USAGE for values out of range, and where no generation runs whose dial can be moved.
  void SetBudget(double budget);
  void SetTokensPerSecond(double rate);

  // Before a decode step: hands what was set since the last one to the planner. False if nothing was.
  bool TakeOver(Planner& planner);

 private:
  void RequireMovable(const char* flag) const;

  mutable std::mutex mutex_;
  std::atomic<bool> open_{false};
  std::string fixed_;
  bool milliseconds_ = false;
  std::optional<double> budget_, rate_;  // at most one: the last that was set
};

}  // namespace sol_rt
