// From the stored codes of a matrix of 3 bits to words of four numbers, entries of its tables: common/nested_format.h.
//
// A thread has eight outputs of a tile of 32: j and j + 1, and those 8, 16 and 24 further, where j = 2 (thread % 4). Their low bits are two
// bytes of a row's 8, and their top bits lie in the row's word of 4. A table of eight entries is two words, and a permutation of bytes
// looks up four codes.
#pragma once

#include "cuda/device/device.h"
#include "cuda/matmul/matmul.h"
#include "cuda/matmul/nibbles.h"

namespace sol::cuda {

constexpr int kCodeTile = static_cast<int>(sol::kCodeTile);
constexpr int kTileThreads = 4;     // that share a tile
constexpr int kNumbersAThread = 8;  // outputs
constexpr uint32_t kTopBits = 0x01010101u;

// Which output of a tile is output i of its thread `member`.
__device__ __forceinline__ int OutputOf(int member, int i) { return i / 2 * 8 + 2 * member + i % 2; }

// Codes of four channels of a thread's outputs, a channel a row.
struct QuadCodes {
  uint32_t low[4], high[4];

  // Of row i, whose bytes of the tile begin at `tile` in `low`.
  __device__ __forceinline__ void Load(const Weights& w, int64_t tile, int member, int i) {
    low[i] = __ldg(reinterpret_cast<const uint16_t*>(w.low + tile) + member);
    high[i] = __ldg(reinterpret_cast<const uint32_t*>(w.high + tile / 2));
  }

  // What permutes a table's bytes to the numbers of output i: four codes, a nibble each.
  __device__ __forceinline__ void Selectors(int member, uint32_t (&selectors)[kNumbersAThread]) const {
    const uint32_t low01 = __byte_perm(low[0], low[1], 0x5140), low23 = __byte_perm(low[2], low[3], 0x5140);
    const uint32_t bytes[2] = {__byte_perm(low01, low23, 0x5410), __byte_perm(low01, low23, 0x7632)};  // of both outputs, a byte of every row
    uint32_t tops[4];
    TransposeBytes(high, tops);
#pragma unroll
    for (int i = 0; i < kNumbersAThread; ++i) {
      const uint32_t top = tops[i / 2] >> (2 * member + i % 2) & kTopBits;
      const uint32_t codes = (bytes[i % 2] >> i / 2 * 2 & kPairs) | top << 2;
      selectors[i] = __byte_perm(codes | codes >> 4, 0, 0x4420);
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
