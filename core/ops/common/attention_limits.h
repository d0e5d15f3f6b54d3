// Limits of SparseAttention, the same on every provider.
#pragma once

#include <cstdint>

namespace sol {

inline constexpr int64_t kPageSize = 4;
inline constexpr int64_t kMaxHeadDim = 256;
inline constexpr int64_t kMaxGroup = 128;
inline constexpr int64_t kMaxCapacity = int64_t{1} << 30;  // of all KV heads together: their tokens are counted in 32 bits

}  // namespace sol
