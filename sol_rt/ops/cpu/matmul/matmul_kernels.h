// Nested weights, quantized activations, and the arithmetic on them that is chosen by SIMD target.
// Formats: docs/bundle.md, section 2.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sol {

constexpr size_t kBlock = 32;  // channels that share a scale
constexpr size_t kTile = 64;   // outputs of one step of the many-token product

// Activations have codes of 8 bits, or at level 8 of 16 bits in two parts: C = 254 c1 + c2, both from -127 to 127.
constexpr size_t PartsAt(int bits) { return bits == 8 ? 2 : 1; }
constexpr int kPartStep = 254;

// A quantized matrix of K channels by N outputs, where it lies in memory.
struct Nested {
  const uint8_t* base = nullptr;    // block-major [K/32, N, 16] or channel-major [K, N/2]
  const uint16_t* scale = nullptr;  // float16 [K/32, N]
  const uint8_t* zero = nullptr;    // [K/32, N]
  const uint8_t* plane1 = nullptr;  // [K/32, N, 8], from 6 bits on
  const uint8_t* plane2 = nullptr;  // [K/32, N, 8], at 8 bits
  size_t K = 0;
  size_t N = 0;
  int bits = 4;

  // What level subtracts from a code besides the zero point.
  float Center() const { return bits == 8 ? 8.0f : bits == 6 ? 6.5f : 0.0f; }

  // Of the activations' codes.
  size_t Parts() const { return PartsAt(bits); }
};

// Codes of tokens' activations, in parts of int8. Orders of the 32 codes of a block:
//   natural   channels 0 … 31
//   even_odd  channels 0, 2, … 30, 1, 3, … 31: the nibbles of a block-major base
//   phased    channels 0, 4, … 28, 1, 5, … 29, 2, …, 3, …: the fields of a residual plane
// Tokens follow each other in every array. Orders that nobody asked for are null.
struct Activations {
  size_t parts = 1;            // as the matrix that is multiplied has it
  int8_t* natural = nullptr;   // [tokens, parts, K]
  int8_t* even_odd = nullptr;  // [tokens, parts, K]
  int8_t* phased = nullptr;    // [tokens, parts, K]
  float* step = nullptr;       // [tokens, K/32] the block's a / 16
  float* sum = nullptr;        // [tokens, K/32] sum of the block's codes times a / 16
};

// The nonzero channels of one token in quads of a block each, the last of a block padded with zero codes: what a
// channel-major product reads.
struct ActiveQuads {
  uint8_t* rows = nullptr;    // [K + kSlack] channels within their block
  int8_t* codes = nullptr;    // [parts, K + kSlack]
  uint32_t* begin = nullptr;  // [K/32 + 1] first quad of every block
  static constexpr size_t kSlack = 64;  // written in whole vectors
};

struct Range {
  size_t begin, end;
};

enum class Activation { kSilu, kGelu, kGeluTanh, kRelu };

struct Kernels {
  // Zeroes all but the `keep` elements of largest magnitude; of equal ones the first are kept. NaN counts as largest.
  void (*keep_largest)(float* x, size_t n, size_t keep);

  // Quantizes one token into row `token` of `out`.
  void (*quantize)(const float* x, size_t K, size_t token, const Activations& out);

  // Lists the nonzero natural codes of one token, and something of every block whose step is not finite.
  void (*list_active)(const Activations& x, size_t K, const ActiveQuads& out);

  // y[n] = x W[:, n] for begin <= n < end, one token, block-major base.
  void (*row_block_major)(const Nested& w, const Activations& x, size_t begin, size_t end, float* y);

  // y[n] += the part of x W[:, n] that the blocks of channels add, for begin <= n < end, one token, channel-major base;
  // begin and end are even.
  void (*row_channel_major)(const Nested& w, const Activations& x, const ActiveQuads& active, Range blocks, size_t begin,
                            size_t end, float* y);

  // sums[t][0 … 63] = x[first + t] W[:, n … n + 63] for t < tokens; outputs past N are zero. n is a multiple of 64.
  void (*tile_block_major)(const Nested& w, const Activations& x, size_t first, size_t tokens, size_t n, float* sums);
  void (*tile_channel_major)(const Nested& w, const Activations& x, size_t first, size_t tokens, size_t n, float* sums);

  // h[i] = act(gate[i]) * up[i], or act(gate[i]) where up is null. h may be gate.
  void (*activate)(Activation act, const float* gate, const float* up, size_t n, float* h);

  // y = x / sqrt(mean(x^2) + epsilon) * weight, or where there is a bias (x - mean) / sqrt(variance + epsilon) * weight + bias.
  // y may be x.
  void (*normalize)(const float* x, size_t n, const float* weight, const float* bias, float epsilon, float* y);
};

// The best set for this processor.
const Kernels& BestKernels();

}  // namespace sol
