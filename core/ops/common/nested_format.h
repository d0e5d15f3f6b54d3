// The format of a nested matrix, the same on every provider. docs/reference/bundle-details.md section 2 is its specification.
//
// A matrix W has K input channels and N outputs. K is a multiple of 32, and blocks of 32 channels run along K.
// A weight is one code of 8 bits, stored as three planes. A product at 4 bits reads the base alone, at 6 bits plane 1 too, at 8 bits all:
//
//   q    base, 4 bits       W[k, n] = s/16 (16 q               - z)    at 4 bits
//   b    plane 1, 2 bits    W[k, n] = s/16 (16 q + 4 b - 6.5   - z)    at 6 bits
//   c    plane 2, 2 bits    W[k, n] = s/16 (16 q + 4 b + c - 8 - z)    at 8 bits
//
// The scale s and the zero point z belong to one block of channels and one output. Every level shares them.
//
//   scale            float16 [K/32, N]
//   zero             uint8 [K/32, N]
//   base             block-major [K/32, N, 16]: byte j has channel 2j in its low nibble, channel 2j + 1 in its high one
//                    channel-major [K, N/2]: byte j of a row has output 2j in its low nibble, output 2j + 1 in its high one
//   plane1, plane2   uint8 [K/32, N, 8]: byte j has channels 4j … 4j + 3, lowest bits first
//
// A matrix of 3 bits is stored on its own. N is a multiple of 32 too, and a code c of 3 bits stands for an entry of one of four tables:
//
//   W[k, n] = s[n] m[k/32, n] codebook[t[k/32, n]][code[k, n]]
//
//   low              uint8 [K, N/4]: byte j of the 8 bytes of 32 outputs is c[j] + 8 c[8 + j] + 64 (c[24 + j] mod 4)
//   high             uint8 [K, N/8]: byte j of the 4 bytes of 32 outputs is c[16 + j] + 8 c[20 + j] + 64 (c[24 + j] / 4) + 128 (c[28 + j] / 4)
//   block_scale      uint8 [K/32, N]: m in the low 6 bits, t in the high 2
//   output_scale     float16 [N]: s
//   codebook         int8 [4, 8]: -127 to 127
//
// The first pass of a screened product reads such a matrix too. Its rows have ScreenColumns(N) places, of which the first N count.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sol {

constexpr size_t kBlock = 32;  // channels that share a scale
constexpr size_t kCodeTile = 32;  // outputs whose 3-bit codes share 12 bytes
constexpr size_t kCodebookSize = 32;  // entries of all four tables

// Places of a row of the 3-bit matrix that screens N outputs. An odd multiple of 256: rows begin at cache lines, and the lines of a block's 32
// rows, which are read together, differ in the places that a cache has for them. With a power of two they would all have the same ones.
constexpr int64_t ScreenColumns(int64_t N) { return ((N + 255) / 256 | 1) * 256; }

// Planes beside the base.
constexpr int PlanesAt(int bits) { return bits > 4 ? (bits - 4) / 2 : 0; }
// A channel-major matrix's inputs of an operator, planes apart.
constexpr int PortsAt(int bits) { return bits == 3 ? 5 : 3; }

// Activations are codes too: 8 bits, and for a matrix at 8 bits 16 bits in two halves of int8, C = 254 c1 + c2.
constexpr size_t HalvesAt(int bits) { return bits == 8 ? 2 : 1; }
constexpr int kHalfStep = 254;

}  // namespace sol
