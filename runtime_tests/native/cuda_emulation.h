// CUDA's language on the host, for tests: kernels are compiled unchanged by the host's compiler, and cuda_machine.h runs them. What is
// emulated: barriers, warp collectives over whole warps, shared memory, fences, atomics, dp4a, byte permutation, and the fragments of the
// matrix instructions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "cuda_machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct int2 {
  int x, y;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace emulation {

// A block's shared memory at one place of the program.
template <class T>
class Shared {
 public:
  T& Get() { return *static_cast<T*>(Machine::Get().SharedMemory(place_, sizeof(T))); }

 private:
  SharedPlace place_;
};

// Gives `mine` to the warp; returns what all lanes gave.
template <class T>
const Slot* Exchange(const T& mine) {
  static_assert(sizeof(T) <= sizeof(Slot));
  return Machine::Get().Exchange(&mine, sizeof(T));
}

template <class T>
T Read(const Slot* slots, unsigned lane) {
  T value;
  std::memcpy(&value, slots[lane].bytes, sizeof(T));
  return value;
}

// Words of the lanes of a warp for a matrix instruction of eight words of depth, as PTX lays it out: 16 rows of four registers on the left, eight
// columns of two on the right. A lane's results are those of two columns in its row and in the eighth after it.
class Fragments {
 public:
  Fragments(const uint32_t (&a)[4], const uint32_t (&b)[2]) : lane_(Machine::Get().Lane()) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    slots_ = Exchange(mine);
  }
  // Word `word` of the row, or column, of a lane's result i.
  uint32_t Left(unsigned word, unsigned i) const { return Register(lane_ / 4 * 4 + word % 4, i / 2 + word / 4 * 2); }
  uint32_t Right(unsigned word, unsigned i) const { return Register((lane_ % 4 * 2 + i % 2) * 4 + word % 4, 4 + word / 4); }

 private:
  uint32_t Register(unsigned lane, unsigned index) const {
    uint32_t value;
    std::memcpy(&value, slots_[lane].bytes + 4 * index, sizeof(value));
    return value;
  }

  unsigned lane_;
  const Slot* slots_;
};

inline float FloatOfHalf(uint16_t half) { return kHalves[half]; }

// Rounds to nearest, ties to even; beyond float16 to infinity.
inline uint16_t HalfOfFloat(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7FFF;
  if (size >= 65520.0f) return sign | 0x7C00;
  if (size < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const float mantissa = std::frexp(size, &exponent);  // in [0.5, 1)
  const int code = static_cast<int>(std::nearbyint(std::ldexp(mantissa, 11)));  // 1024 … 2048
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + code);
}

}  // namespace emulation

inline void __syncthreads() { emulation::Machine::Get().Barrier(0); }
inline int __syncthreads_count(int predicate) { return emulation::Machine::Get().Barrier(predicate); }
inline void __syncwarp() { emulation::Machine::Get().SyncWarp(); }
inline void __threadfence() { emulation::Machine::Get().Fence(); }

inline void RequireWholeWarp(uint32_t mask) {
  if (mask != 0xffffffffu) emulation::Die("a warp collective of some lanes only");
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int by) {
  RequireWholeWarp(mask);
  const auto* slots = emulation::Exchange(value);
  return emulation::Read<T>(slots, emulation::Machine::Get().Lane() ^ static_cast<unsigned>(by));
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by) {
  RequireWholeWarp(mask);
  const unsigned lane = emulation::Machine::Get().Lane();
  return emulation::Read<T>(emulation::Exchange(value), lane < by ? lane : lane - by);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane) {
  RequireWholeWarp(mask);
  return emulation::Read<T>(emulation::Exchange(value), static_cast<unsigned>(lane) % 32);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  RequireWholeWarp(mask);
  const auto* slots = emulation::Exchange(predicate);
  uint32_t votes = 0;
  for (unsigned i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(emulation::Read<int>(slots, i) != 0) << i;
  return votes;
}

template <class T>
T atomicAdd(T* at, T by) {
  emulation::Machine::Get().Atomic(at, sizeof(T));
  return __atomic_fetch_add(at, by, __ATOMIC_RELAXED);
}
// A device loads words of 2, 4, 8 and 16 bytes from multiples of their size alone; the host would not mind.
template <class T>
T __ldcg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) emulation::Die("a load that is not aligned");
  return *at;
}
template <class T>
T __ldg(const T* at) {
#ifdef __SANITIZE_THREAD__
  emulation::Machine::Get().ReadOnly(at, sizeof(T));
#endif
  return __ldcg(at);
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __float2int_rn(float x) { return std::isnan(x) ? 0 : static_cast<int>(std::nearbyint(std::clamp(x, -2147483648.0f, 2147483520.0f))); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
