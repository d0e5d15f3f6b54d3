#include "engine/ort/operator_tuning.h"

#ifdef SOL_RT_OPERATORS
extern "C" void SolRtTune(uint32_t level, uint32_t row_bytes, uint32_t members);
extern "C" void SolRtCopies(uint32_t use);
extern "C" void SolRtTuning(uint32_t* values);
#endif

namespace sol_rt {

void ApplyTuning([[maybe_unused]] const Tuning& tuning, [[maybe_unused]] bool keep_copies) {
#ifdef SOL_RT_OPERATORS
  SolRtTune(tuning.cache_level, tuning.row_bytes_ahead, tuning.members);
  SolRtCopies(tuning.copies ? 1 : keep_copies ? 2 : 0);
#endif
}

Tuning CurrentTuning() {
  Tuning tuning;
#ifdef SOL_RT_OPERATORS
  uint32_t values[4];
  SolRtTuning(values);
  tuning = {values[0], values[1], values[2], values[3] != 0};
#endif
  return tuning;
}

}  // namespace sol_rt
