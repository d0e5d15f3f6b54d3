// The arithmetic of products with nested matrices, chosen by SIMD target, and what it works on: weights, codes of activations, and the
// list of channels that are active. common/nested_format.h has the format of the weights. Each -inl.h file has the formula of its kernels.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/nested_format.h"

namespace sol {

constexpr size_t kTile = 64;  // outputs of one step of the product of several tokens

// A quantized matrix of K channels by N outputs, where it lies in memory.
struct Nested {
  const uint8_t* base = nullptr;    // block-major [K/32, N, 16] or channel-major [K, N/2]
  const uint16_t* scale = nullptr;  // float16 [K/32, N]
  const uint8_t* zero = nullptr;    // [K/32, N]
  const uint8_t* plane1 = nullptr;  // [K/32, N, 8], from 6 bits on
  const uint8_t* plane2 = nullptr;  // [K/32, N, 8], at 8 bits
  const uint8_t* packed = nullptr;  // null, or of a channel-major matrix at 4 bits a copy (packed_matrix.h), which is read in their place
  // At 3 bits, in the place of all these:
  const uint8_t* low = nullptr;            // [K, N/4]
  const uint8_t* high = nullptr;           // [K, N/8]
  const uint8_t* block_scale = nullptr;    // [K/32, N]
  const uint16_t* output_scale = nullptr;  // float16 [N]
  const int8_t* codebook = nullptr;        // [4, 8]
  bool in_order = false;                   // rows follow each other in the order of reading: the processor brings them on its own, nobody asks ahead
  size_t K = 0;
  size_t N = 0;
  int bits = 4;

  // The constant that the level subtracts from a code, beside the zero point.
  float Center() const { return bits == 8 ? 8.0f : bits == 6 ? 6.5f : 0.0f; }

  // Of the codes of the activations that it is multiplied by.
  size_t Halves() const { return HalvesAt(bits); }
};

constexpr size_t kPanel = 128;                   // outputs of a copy that lie together (packed_matrix.h)
constexpr size_t kPackedBytes = kBlock / 2 + 3;  // of an output in a block of a copy
constexpr size_t kCodebookPanel = 256;           // of a copy at 3 bits: as many as the widest step computes at once

// Addresses of the weights of outputs n, n + 1, … of a block.
struct BlockPlace {
  const uint8_t* base;
  const uint16_t* scale;
  const uint8_t* zero;
  size_t stride;  // of the base's rows, in bytes
};

// In a copy; the block is one of a split's blocks `first` … `end` - 1. n is even.
BlockPlace PlaceInCopy(const uint8_t* packed, size_t N, size_t first, size_t end, size_t block, size_t n);

// Codes of tokens' activations, x[k] = a C[k], in one or two halves of int8. The step a belongs to a token and a block of 32 channels.
// Orders of a block's 32 codes:
//   natural   channels 0 … 31
//   even_odd  channels 0, 2, … 30, 1, 3, … 31: the nibbles of a block-major base
//   phased    channels 0, 4, … 28, 1, 5, … 29, 2, …, 3, …: the fields of a residual plane
// Tokens follow each other in every array. Orders that nobody asked for are null.
struct Activations {
  size_t halves = 1;           // as the matrix that is multiplied has it
  int8_t* natural = nullptr;   // [tokens, halves, K]
  int8_t* even_odd = nullptr;  // [tokens, halves, K]
  int8_t* phased = nullptr;    // [tokens, halves, K]
  float* step = nullptr;       // [tokens, K/32] the block's a / 16
  float* sum = nullptr;        // [tokens, K/32] sum of the block's codes times a / 16
};

// The channels of one token whose codes are not zero, in quads of a block each. The last quad of a block is padded with zero codes. A
// channel-major product reads the rows of these channels and no others.
struct ActiveQuads {
  uint8_t* rows = nullptr;    // [K + kSlack] channels within their block
  int8_t* codes = nullptr;    // [halves, K + kSlack]
  uint32_t* begin = nullptr;  // [K/32 + 1] first quad of every block
  static constexpr size_t kSlack = 64;  // written in whole vectors
};

// A part of a product: the blocks of channels first_block … end_block - 1, and the outputs begin … end - 1; begin is a multiple of kTile.
struct TilePart {
  size_t first_block, end_block, begin, end;
};

struct MatMulKernels {
  // quantize-inl.h
  // Zeroes all but the `count` elements of largest magnitude. Of equal ones the first stay. NaN counts as largest. Returns how often the search
  // counted the elements above a magnitude.
  size_t (*keep_largest)(float* x, size_t n, size_t count);
  // Quantizes one token into row `token` of `out`.
  void (*quantize)(const float* x, size_t K, size_t token, const Activations& out);
  // Lists the nonzero natural codes of one token, and one channel of every block whose step is not finite.
  void (*list_active)(const Activations& x, size_t K, const ActiveQuads& out);

  // row-inl.h
  // y[n] = x W[:, n] for begin <= n < end, one token, block-major base.
  void (*row_block_major)(const Nested& w, const Activations& x, size_t begin, size_t end, float* y);
  // y[n] += what the blocks first_block … end_block - 1 of the channels add to x W[:, n], for begin <= n < end, one token, channel-major base.
  // begin and end are even.
  void (*row_channel_major)(const Nested& w, const Activations& x, const ActiveQuads& active, size_t first_block, size_t end_block,
                            size_t begin, size_t end, float* y);

  // cpu/codebook/row-inl.h
  // y[n] = what the blocks first_block … end_block - 1 of the channels give of x W[:, n], for begin <= n < end, one token, 3 bits. y is zero
  // before. begin and end are multiples of 32.
  void (*row_codebook)(const Nested& w, const Activations& x, const ActiveQuads& active, size_t first_block, size_t end_block, size_t begin,
                       size_t end, float* y);

  // tile-inl.h
  // y[t * stride + i] += what the part's blocks give of x[first + t] W[:, begin + i], for t < tokens, with the bits that row_… gives for one token.
  // Whole tiles of y are written, past N with no meaning. At 3 bits y is zero before.
  void (*tile_block_major)(const Nested& w, const Activations& x, size_t first, size_t tokens, const TilePart& part, float* y, size_t stride);
  void (*tile_channel_major)(const Nested& w, const Activations& x, size_t first, size_t tokens, const TilePart& part, float* y, size_t stride);
};

// The best set for this processor.
const MatMulKernels& BestMatMulKernels();

}  // namespace sol
