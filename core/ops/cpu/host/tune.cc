// Settings of this process's operators that depend on the processor and change no result. The functions may be called at any time, from any thread.

#include <cstdint>

#include "common/export.h"
#include "cpu/matmul/packed_matrix.h"
#include "cpu/simd/prefetch.h"
#include "cpu/threads/team_size.h"

// level: the cache that memory is asked for into, 1 or 2. row_bytes: how far ahead a channel-major matrix is asked for. members: the threads
// of a decode step at most, 0 meaning all of the pool's.
extern "C" SOL_EXPORT void SolOpsTune(uint32_t level, uint32_t row_bytes, uint32_t members) {
  sol::prefetching.first_level.store(level == 1, std::memory_order_relaxed);
  sol::prefetching.row_bytes.store(row_bytes, std::memory_order_relaxed);
  sol::TeamSize::Shared().SetMost(members);
}

// Copies of the layers' 4-bit matrices and of the 3-bit one that screens the LM head, in the order of reading (packed_matrix.h): 1 makes and reads them,
// 2 keeps those that there are and reads none, 0 frees them, each matrix' at the next step that would have read it.
extern "C" SOL_EXPORT void SolOpsCopies(uint32_t use) { sol::copies_use.store(static_cast<sol::CopiesUse>(use), std::memory_order_relaxed); }

// Values that both set last, or the defaults: level, row_bytes, members, and 1 where copies are read.
extern "C" SOL_EXPORT void SolOpsTuning(uint32_t* values) {
  values[0] = sol::prefetching.first_level.load(std::memory_order_relaxed) ? 1 : 2;
  values[1] = sol::prefetching.row_bytes.load(std::memory_order_relaxed);
  values[2] = static_cast<uint32_t>(sol::TeamSize::Shared().Most());
  values[3] = sol::copies_use.load(std::memory_order_relaxed) == sol::CopiesUse::kRead ? 1 : 0;
}
