// Number of threads for a decode step.
#pragma once

#include <cstdint>
#include <set>
#include <string>

namespace sol_rt {

// The processors that this process may run on, by number.
std::set<int> AllowedCores();

// Number of `allowed` cores that a step's threads should have, at least 1: a step waits for its slowest thread. On Linux and Android the slow cores of a hybrid
// processor do not count, and there are no more than the quota of the process's control group allows. `proc` and `sys` lie in `root`.
int32_t UsableCores(const std::string& root, const std::set<int>& allowed);

}  // namespace sol_rt
