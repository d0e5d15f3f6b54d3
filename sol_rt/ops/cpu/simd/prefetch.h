// Asks for memory before it is read, into the second-level cache.
//
// A core keeps more lines in flight into its second-level cache than into the first: on Zen 4 31 to 33 and about 19. Weights and cached
// keys come from memory as single lines from row to row, where the hardware foresees little, so lines in flight set the rate.
#pragma once
#include <cstddef>
#if defined(_MSC_VER) && !defined(__clang__)
#include <xmmintrin.h>
#endif

namespace sol {

// The line that holds `from`.
inline void PrefetchLine(const void* from) {
#if defined(_MSC_VER) && !defined(__clang__)
  _mm_prefetch(static_cast<const char*>(from), _MM_HINT_T1);
#else
  __builtin_prefetch(from, 0, 2);
#endif
}

// The lines of `bytes` bytes from `from` on.
inline void PrefetchLines(const void* from, std::size_t bytes) {
  for (std::size_t i = 0; i < bytes; i += 64) PrefetchLine(static_cast<const char*>(from) + i);
}

}  // namespace sol
