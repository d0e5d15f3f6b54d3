// From the stored planes of a nested matrix to words of four codes.
#pragma once

#include "cuda/device/device.h"
#include "cuda/matmul/matmul.h"

namespace sol::cuda {

constexpr uint32_t kLowNibbles = 0x0f0f0f0fu;
constexpr uint32_t kHighNibbles = 0xf0f0f0f0u;
constexpr uint32_t kPairs = 0x03030303u;

// Byte j of the result's word i is byte i of word j.
__device__ __forceinline__ void TransposeBytes(const uint32_t (&from)[4], uint32_t (&to)[4]) {
  const uint32_t low01 = __byte_perm(from[0], from[1], 0x5140), low23 = __byte_perm(from[2], from[3], 0x5140);
  const uint32_t high01 = __byte_perm(from[0], from[1], 0x7362), high23 = __byte_perm(from[2], from[3], 0x7362);
  to[0] = __byte_perm(low01, low23, 0x5410);
  to[1] = __byte_perm(low01, low23, 0x7632);
  to[2] = __byte_perm(high01, high23, 0x5410);
  to[3] = __byte_perm(high01, high23, 0x7632);
}

// The residual codes of the four channels i + 16 w + {0, 4, 8, 12} of an output: 4 b, or 4 b + c.
template <int kBits>
__device__ __forceinline__ uint32_t Residual(uint32_t plane1, uint32_t plane2, int i) {
  const uint32_t b = (plane1 >> 2 * i & kPairs) << 2;
  return kBits == 8 ? b | (plane2 >> 2 * i & kPairs) : b;
}

// Twice what a level subtracts from a code: the zero point and its centre.
template <int kBits>
__device__ __forceinline__ int TwiceZero(int zero) {
  return 2 * zero + (kBits == 8 ? 16 : kBits == 6 ? 13 : 0);
}

// Twice the sum of (code - zero) times the activations' codes, which fits: at most 2 * 32 * 263 * 32258 in magnitude.
template <int kBits>
__device__ __forceinline__ float Centred(int codes, int zero, int sum) {
  return static_cast<float>(2 * codes - TwiceZero<kBits>(zero) * sum);
}

template <int kBits>
constexpr int kHalvesOf = kBits == 8 ? 2 : 1;

// The dot product of the whole codes of its halves'.
template <int kHalves>
__device__ __forceinline__ int Whole(const int (&dots)[kHalves]) {
  if constexpr (kHalves == 2) return kHalfStep * dots[0] + dots[1];
  return dots[0];
}

}  // namespace sol::cuda
