// Settings of the native operators, which hold for all models of this process.
#pragma once

#include "engine/tuning.h"

namespace sol_rt {

// Sets how the operators run from now on, and reports how they run. Without operators the first does nothing. Copies that are not used are freed, or with
// `keep_copies` stay for settings that follow.
void ApplyTuning(const Tuning& tuning, bool keep_copies = false);
Tuning CurrentTuning();

}  // namespace sol_rt
