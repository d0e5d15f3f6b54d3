// Products with nested matrices on the device: what is launched, and the memory between launches. docs/reference/bundle-details.md section 2 has the
// formats. No CUDA header is needed to call this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/activation.h"
#include "common/nested_format.h"
#include "cuda/device/scratch.h"

namespace sol::cuda {

using Stream = void*;

constexpr int kBlock = static_cast<int>(sol::kBlock);  // channels that share a scale

// A nested matrix in device memory.
struct Weights {
  const uint8_t* base = nullptr;    // block-major [K/32, N, 16] or channel-major [K, N/2]
  const uint16_t* scale = nullptr;  // float16 [K/32, N]
  const uint8_t* zero = nullptr;    // [K/32, N]
  const uint8_t* plane1 = nullptr;  // [K/32, N, 8], from 6 bits on
  const uint8_t* plane2 = nullptr;  // [K/32, N, 8], at 8 bits
  // At 3 bits, in the place of all these:
  const uint8_t* low = nullptr;            // [K, N/4]
  const uint8_t* high = nullptr;           // [K, N/8]
  const uint8_t* block_scale = nullptr;    // [K/32, N]
  const uint16_t* output_scale = nullptr;  // float16 [N]
  const int8_t* codebook = nullptr;        // [4, 8]
  int K = 0;
  int N = 0;
  int bits = 4;
  bool channel_major = false;
};

// Number of active channels of a row: *count, 0 meaning all, where count is not null. It is read on the device.
struct ActiveChannels {
  const int64_t* count = nullptr;
};

// The rows that enter a product, float [rows, K].
struct Source {
  enum Kind : int { kPlain, kRmsNorm, kLayerNorm, kActivation, kGatedActivation };
  Kind kind = kPlain;
  const float* x = nullptr;  // [rows, K], of a gated activation [rows, 2 K], the gate first
  const float* weight = nullptr;
  const float* bias = nullptr;
  float epsilon = 0;
  Activation activation = Activation::kSilu;
};

// Rows as codes. At 8 bits a code has two halves of int8, C = 254 c1 + c2.
// Orders of a block's 32 codes:
//   phased    word 2 i + w has channels i + 16 w + {0, 4, 8, 12}: the fields of a residual plane
//   even_odd  word i of the first four has channels 8 i + {0, 2, 4, 6}, of the last four 8 i + {1, 3, 5, 7}: the nibbles of a block-major base
struct Codes {
  int8_t* phased = nullptr;        // [rows, halves, K]
  int8_t* even_odd = nullptr;      // [rows, halves, K], of one row for a block-major matrix
  float* step = nullptr;           // [rows, K/32], a / 32
  int32_t* sum = nullptr;          // [rows, K/32], of a block's codes
  // The channels of one row that are not zero, in quads of a block each, the last one of a block padded with codes of zero.
  uint32_t* quad_rows = nullptr;   // [K/32, 8], four channels within the block, a byte each
  uint32_t* quad_codes = nullptr;  // [halves, K/32, 8]
  int32_t* quads = nullptr;        // [K/32], how many
  float* values = nullptr;         // [blocks, K], where a block's shared memory does not hold a row
  // Of a product split along K: the splits' sums, and the counters that find the last block.
  float* partial = nullptr;        // [splits, rows, N]
  uint32_t* counters = nullptr;    // zero before the product
  int splits = 1;
  int count_of_counters = 0;
};

inline int Halves(int bits) { return static_cast<int>(HalvesAt(bits)); }

// Rows that a product takes at once; what has more is cut by the caller.
constexpr int64_t kRowsAtOnce = 512;

// Memory of a product of `rows` rows with w.
Codes PlaceCodes(const Weights& w, int64_t rows, Scratch& scratch);

// Quantizes the rows, of each of which the active channels of largest magnitude count.
void Quantize(Stream stream, const Weights& w, const Source& source, ActiveChannels active, int64_t rows, const Codes& codes);

// y [rows, N] = rows times w, plus bias [N] and residual [rows, N] where they are not null.
void Multiply(Stream stream, const Weights& w, const Codes& codes, int64_t rows, const float* bias, const float* residual, float* y);

// Both, kRowsAtOnce rows at a time; `scratch` comes from PlaceCodes(w, min(rows, kRowsAtOnce)).
void QuantizeAndMultiply(Stream stream, const Weights& w, Source source, ActiveChannels active, int64_t rows, const Codes& codes, const float* bias,
                         const float* residual, float* y);

// y [tokens, K]: rows of a block-major matrix's transpose; of an id that is none, not a number.
void Gather(Stream stream, const Weights& w, const int64_t* ids, int64_t tokens, float* y);

// The device's multiprocessors, what grids are cut by.
int Multiprocessors();

}  // namespace sol::cuda
