// From the stored codes of a matrix of 3 bits to words of four numbers, entries of its tables: common/nested_format.h.
//
// A thread has eight outputs of a tile of 32: j and j + 1, and those 8, 16 and 24 further, where j = 2 (thread % 4). Their codes lie in two
// bytes of a row's 8 of `low` and in two of its 4 of `high`, which two threads share. A table of eight entries is two words, and a
// permutation of bytes looks up four codes.
#pragma once

#include "cuda/device/device.h"
#include "cuda/matmul/matmul.h"
#include "cuda/matmul/nibbles.h"

namespace sol::cuda {

constexpr int kCodeTile = static_cast<int>(sol::kCodeTile);
constexpr int kTileThreads = 4;     // that share a tile
constexpr int kNumbersAThread = 8;  // outputs
constexpr uint32_t kCodes = 0x07070707u;
constexpr uint32_t kTopBits = 0x04040404u;

// Output of a tile that is output i of its thread `member`.
__device__ __forceinline__ int OutputOf(int member, int i) { return i / 2 * 8 + 2 * member + i % 2; }

// Codes of four channels of a thread's outputs, a channel a row of two bytes: one of even outputs, one of odd ones.
struct QuadCodes {
  uint32_t low[4], high[4];

  // Of row i, whose bytes of the tile begin at `tile` in `low`.
  __device__ __forceinline__ void Load(const Weights& w, int64_t tile, int member, int i) {
    low[i] = __ldg(reinterpret_cast<const uint16_t*>(w.low + tile) + member);
    high[i] = __ldg(reinterpret_cast<const uint16_t*>(w.high + tile / 2) + member % 2);
  }

  // Selectors that permute a table's bytes to the numbers of output i: four codes, a nibble each.
  __device__ __forceinline__ void Selectors(int member, uint32_t (&selectors)[kNumbersAThread]) const {
    uint32_t lows[4], highs[4];  // a byte of every row: word 0 of even outputs, word 1 of odd ones, the others empty
    TransposeBytes(low, lows);
    TransposeBytes(high, highs);
    const int upper = member / 2;  // 1: its codes of `high` lie above those of the thread that shares the bytes
#pragma unroll
    for (int odd = 0; odd < 2; ++odd) {
      const uint32_t top = highs[odd] >> (4 + upper) & kTopBits;
      const uint32_t codes[4] = {lows[odd] & kCodes, lows[odd] >> 3 & kCodes, highs[odd] >> 3 * upper & kCodes, (lows[odd] >> 6 & kPairs) | top};
#pragma unroll
      for (int i = 0; i < 4; ++i) selectors[2 * i + odd] = __byte_perm(codes[i] | codes[i] >> 4, 0, 0x4420);
    }
  }
};

// Of a thread's outputs, from their bytes of `block_scale`.
struct OutputScales {
  uint2 table[kNumbersAThread];
  int m[kNumbersAThread];

  // `block_scale` is the tile's first byte.
  __device__ __forceinline__ void Load(const Weights& w, const uint8_t* block_scale, int member) {
#pragma unroll
    for (int i = 0; i < kNumbersAThread; ++i) {
      const int byte = __ldg(block_scale + OutputOf(member, i));
      table[i] = __ldg(reinterpret_cast<const uint2*>(w.codebook) + (byte >> 6));
      m[i] = byte & 63;
    }
  }
};

}  // namespace sol::cuda
