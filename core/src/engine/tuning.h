// Settings of the CPU's operators that depend on the processor and change no result.
#pragma once

#include <cstdint>

namespace sol_rt {

constexpr uint32_t kMostAhead = 1 << 20, kMostMembers = 1024;

struct Tuning {
  uint32_t cache_level = 2;          // the cache that memory is asked for into before it is read, 1 or 2
  uint32_t row_bytes_ahead = 12288;  // how far ahead of its use a row of weights is asked for, in bytes
  uint32_t members = 0;              // threads of a decode step at most; 0 means all of the pool's
  bool copies = false;               // whether copies of matrices are read in their place; they take memory
};

}  // namespace sol_rt
