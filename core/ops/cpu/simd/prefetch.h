// Asks for memory before it is read: into which cache and how far ahead.
//
// A core keeps more lines in flight into its second-level cache than into the first: on Zen 4 31 to 33 and about 19. Weights and cached
// keys come from memory as single lines from row to row, where the hardware foresees little, so lines in flight set the rate. Other
// processors differ, so both numbers can be set where the library runs (SolOpsTune). They change no result.
#pragma once
#include <atomic>
#include <cstddef>
#include <cstdint>
#if defined(_MSC_VER) && !defined(__clang__)
#include <xmmintrin.h>
#endif

namespace sol {

struct Prefetching {
  std::atomic<bool> first_level{false};
  std::atomic<uint32_t> row_bytes{12288};  // a core's reading in a channel-major matrix: memory's latency times the core's share of bandwidth
};
inline Prefetching prefetching;

inline bool AsksFirstLevel() { return prefetching.first_level.load(std::memory_order_relaxed); }

// The line that holds `from`. A loop asks once for the level.
inline void PrefetchLine(const void* from, bool first_level = AsksFirstLevel()) {
#if defined(_MSC_VER) && !defined(__clang__)
  if (first_level) {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T0);
  } else {
    _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
  }
#else
  if (first_level) {
    __builtin_prefetch(from, 0, 3);
  } else {
    __builtin_prefetch(from, 0, 2);
  }
#endif
}

// The lines of `bytes` bytes from `from` on.
inline void PrefetchLines(const void* from, std::size_t bytes, bool first_level = AsksFirstLevel()) {
  for (std::size_t i = 0; i < bytes; i += 64) PrefetchLine(static_cast<const char*>(from) + i, first_level);
}

}  // namespace sol
