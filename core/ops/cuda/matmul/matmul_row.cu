// One row times a matrix, by integer dot products of four bytes (dp4a): y [N] = x [K] W + bias + residual.
//
// With x[k] = a C[k] in every block of 32 channels and W as common/nested_format.h has it,
//
//   y[n] = sum over blocks of a/32 s (2 sum over the block's k of (16 q + 4 b + c)[k, n] C[k] - (2 z + 2 center) sum of C[k])
//
// at 4 bits without b and c, at 6 bits without c; center is 0, 6.5 or 8, so that twice of it is an integer, and the brackets are exact.
//
//   ChannelRowKernel   base [K, N/2]. A thread block has 256 outputs and a split of the channels; its warps divide these. Only the rows of
//                      active channels are read. A lane has eight successive outputs, a 32-bit word of a row; four rows are transposed to
//                      words of one output's four channels. Residual planes are read with outputs lane, lane + 32, …
//                      At 3 bits a lane has eight outputs of a tile of 32 (codebook.h), and the sum over blocks is
//                      s sum of a m (sum over the block's k of codebook[t][code[k, n]] C[k]).
//   ColumnKernel       base [K/32, N, 16]. A thread has one output: 16 bytes of base and 8 of each plane a block of channels.
//
// The last thread block of 256 outputs adds the splits up, always in the same order.

#include "cuda/device/block.h"
#include "cuda/matmul/codebook.h"
#include "cuda/matmul/matmul_kernels.h"
#include "cuda/matmul/nibbles.h"

namespace sol::cuda {
namespace {

constexpr int kOctet = 8;                       // outputs of a word of a channel-major row
constexpr int kWarps = kRowOutputs / kWarp;     // of a block, each with all outputs of it and other channels
constexpr int kMostBlocks = kWarps * kMostBlocksAWarp;
constexpr int kQuadsAtOnce = 4;                 // rows of channels that are on their way from memory at once, in fours

struct ChannelShared {
  uint4 offsets[kMostBlocks][8];  // of a quad's rows of base bytes, within their block
  uint32_t codes[2][kMostBlocks][8];
  uint32_t phased[2][kMostBlocks][8];
  int quads[kMostBlocks];
  float step[kMostBlocks];
  int sum[kMostBlocks];
  bool last;
};
struct ChannelSums {
  float sums[kWarps][kRowOutputs];
};

// Eight codes of a channel, from `at` on. Rows of a whole number of words are read as words; of others `count` codes are there.
template <bool kWords>
__device__ __forceinline__ uint32_t LoadOctet(const uint8_t* at, int count) {
  if constexpr (kWords) {
    return __ldg(reinterpret_cast<const uint32_t*>(at));
  } else {
    uint32_t word = 0;
#pragma unroll 1
    for (int i = 0; i < count / 2; ++i) word |= static_cast<uint32_t>(__ldg(at + i)) << 8 * i;
    return word;
  }
}

// Adds a block of channels to the eight outputs from n on by its base plane, and by scales and zeros, which are read whole. With kWords, n is one
// that has eight outputs.
template <int kBits, bool kWords>
__device__ __forceinline__ void AddBase(const Weights& w, const ChannelShared& x, int slot, int64_t block, int n, float (&sums)[kOctet]) {
  constexpr int kHalves = kHalvesOf<kBits>;
  const int count = kWords || w.N - n > kOctet ? kOctet : w.N - n;
  const int64_t at = block * w.N + n;
  const uint8_t* base = w.base + block * kBlock * static_cast<int64_t>(w.N / 2) + n / 2;
  uint16_t scale[kOctet];
  uint8_t zero[kOctet];
  if constexpr (kWords) {
    const uint4 scales = __ldg(reinterpret_cast<const uint4*>(w.scale + at));
    const uint2 zeros = __ldg(reinterpret_cast<const uint2*>(w.zero + at));
    const uint32_t halves[4] = {scales.x, scales.y, scales.z, scales.w};
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      scale[i] = static_cast<uint16_t>(halves[i / 2] >> 16 * (i % 2));
      zero[i] = static_cast<uint8_t>((i < 4 ? zeros.x : zeros.y) >> 8 * (i % 4));
    }
  } else {
#pragma unroll
    for (int i = 0; i < kOctet; ++i) {
      scale[i] = i < count ? __ldg(w.scale + at + i) : uint16_t{0};
      zero[i] = i < count ? __ldg(w.zero + at + i) : uint8_t{0};
    }
  }

  // The sums of even outputs are of the low nibbles themselves, those of odd ones of sixteen times the high ones.
  int dots[kOctet][kHalves] = {};
  const int quads = x.quads[slot];
#pragma unroll 1
  for (int first = 0; first < quads; first += kQuadsAtOnce) {
    uint32_t words[kQuadsAtOnce][4];
#pragma unroll
    for (int q = 0; q < kQuadsAtOnce; ++q) {
      if (first + q >= quads) break;
      const uint4 offsets = x.offsets[slot][first + q];
      words[q][0] = LoadOctet<kWords>(base + offsets.x, count);
      words[q][1] = LoadOctet<kWords>(base + offsets.y, count);
      words[q][2] = LoadOctet<kWords>(base + offsets.z, count);
      words[q][3] = LoadOctet<kWords>(base + offsets.w, count);
    }
#pragma unroll
    for (int q = 0; q < kQuadsAtOnce; ++q) {
      if (first + q >= quads) break;
      uint32_t pairs[4];
      TransposeBytes(words[q], pairs);
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const uint32_t codes = x.codes[h][slot][first + q];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          dots[2 * i][h] = DotBytes(pairs[i] & kLowNibbles, codes, dots[2 * i][h]);
          dots[2 * i + 1][h] = DotBytes(pairs[i] & kHighNibbles, codes, dots[2 * i + 1][h]);
        }
      }
    }
  }
  const float step = x.step[slot];
  const int sum = x.sum[slot];
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const int codes = Whole(dots[i]) * (i % 2 == 0 ? 16 : 1);
    sums[i] += step * HalfToFloat(scale[i]) * Centred<kBits>(codes, zero[i], sum);
  }
}

// Adds a block of channels to the eight outputs of lane `member` of the tile from n on, at 3 bits and without the outputs' scale.
__device__ __forceinline__ void AddCodes(const Weights& w, const ChannelShared& x, int slot, int64_t block, int n, int member,
                                         float (&sums)[kNumbersAThread]) {
  OutputScales scales;
  scales.Load(w, w.block_scale + block * w.N + n, member);
  const int64_t at = block * kBlock * static_cast<int64_t>(w.N / 4) + n / 4;
  int dots[kNumbersAThread] = {};
  const int quads = x.quads[slot];
#pragma unroll 2
  for (int i = 0; i < quads; ++i) {
    const uint4 offsets = x.offsets[slot][i];
    QuadCodes quad;
    quad.Load(w, at + offsets.x, member, 0);
    quad.Load(w, at + offsets.y, member, 1);
    quad.Load(w, at + offsets.z, member, 2);
    quad.Load(w, at + offsets.w, member, 3);
    uint32_t selectors[kNumbersAThread];
    quad.Selectors(member, selectors);
    const uint32_t codes = x.codes[0][slot][i];
#pragma unroll
    for (int o = 0; o < kNumbersAThread; ++o) {
      dots[o] = DotSignedBytes(__byte_perm(scales.table[o].x, scales.table[o].y, selectors[o]), codes, dots[o]);
    }
  }
  const float a = 32.0f * x.step[slot];
#pragma unroll
  for (int o = 0; o < kNumbersAThread; ++o) sums[o] += a * static_cast<float>(scales.m[o]) * static_cast<float>(dots[o]);
}

// Contribution of the residual planes to output n. All lanes of a warp read what lies side by side.
template <int kBits>
__device__ __forceinline__ float ResidualPart(const Weights& w, const ChannelShared& x, int slot, int64_t block, int n) {
  constexpr int kHalves = kHalvesOf<kBits>;
  const int64_t at = block * w.N + n;
  const uint2 plane1 = __ldg(reinterpret_cast<const uint2*>(w.plane1) + at);
  const uint2 plane2 = kBits == 8 ? __ldg(reinterpret_cast<const uint2*>(w.plane2) + at) : make_uint2(0, 0);
  const float scale = HalfToFloat(__ldg(w.scale + at));
  int dots[kHalves] = {};
#pragma unroll
  for (int word = 0; word < 8; ++word) {
    const uint32_t codes =
        word % 2 == 0 ? Residual<kBits>(plane1.x, plane2.x, word / 2) : Residual<kBits>(plane1.y, plane2.y, word / 2);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) dots[h] = DotBytes(codes, x.phased[h][slot][word], dots[h]);
  }
  return x.step[slot] * scale * static_cast<float>(2 * Whole(dots));
}

// A block has kRowOutputs outputs and a share of the channels; its warps divide the channels. The last block of a group of outputs
// adds the shares up, always in the same order.
template <int kBits, bool kWords>
__global__ void __launch_bounds__(kRowOutputs, kBits == 8 || !kWords ? 2 : 3)
    ChannelRowKernel(Weights w, Codes x, int blocks_a_warp, const float* bias, const float* residual, float* y) {
  constexpr int kHalves = kHalvesOf<kBits>;
  SOL_SHARED(ChannelShared, shared);
  SOL_SHARED(ChannelSums, result);
  const int thread = static_cast<int>(threadIdx.x), lane = Lane(), warp = WarpOfBlock();
  const int blocks = w.K / kBlock, share = kWarps * blocks_a_warp;
  const int first = static_cast<int>(blockIdx.y) * share;
  const int mine = blocks - first < share ? blocks - first : share;
  const int n0 = static_cast<int>(blockIdx.x) * kRowOutputs;

  for (int i = thread; i < mine * 8; i += kRowOutputs) {
    const int slot = i / 8, word = i % 8;
    const int64_t at = (first + slot) * int64_t{8} + word;
    const uint32_t rows = x.quad_rows[at], pitch = static_cast<uint32_t>(kBits == 3 ? w.N / 4 : w.N / 2);
    shared.offsets[slot][word] = make_uint4((rows & 0xff) * pitch, (rows >> 8 & 0xff) * pitch, (rows >> 16 & 0xff) * pitch, (rows >> 24) * pitch);
    for (int h = 0; h < kHalves; ++h) {
      const int64_t half = h * int64_t{8} * blocks;
      shared.codes[h][slot][word] = x.quad_codes[half + at];
      if (kBits > 4) shared.phased[h][slot][word] = reinterpret_cast<const uint32_t*>(x.phased)[half + at];
    }
    if (word == 0) {
      shared.quads[slot] = x.quads[first + slot];
      shared.step[slot] = x.step[first + slot];
      shared.sum[slot] = x.sum[first + slot];
    }
  }
  __syncthreads();

  // Lanes past the last output read the last ones once more.
  const int octet = kWords && n0 + lane * kOctet > w.N - kOctet ? w.N - kOctet : n0 + lane * kOctet;
  [[maybe_unused]] const int member = lane % kTileThreads;
  float sums[kOctet] = {};
  float residuals[kOctet] = {};  // of the outputs lane, lane + 32, …
#pragma unroll 1
  for (int i = 0; i < blocks_a_warp; ++i) {
    const int slot = i * kWarps + warp;
    if (slot >= mine || shared.step[slot] == 0.0f) continue;
    if constexpr (kBits == 3) {
      AddCodes(w, shared, slot, first + slot, octet / kCodeTile * kCodeTile, member, sums);
    } else {
      AddBase<kBits, kWords>(w, shared, slot, first + slot, octet, sums);
    }
    if constexpr (kBits > 4) {
#pragma unroll
      for (int j = 0; j < kOctet; ++j) {
        const int n = n0 + j * kWarp + lane;
        if (n < w.N) residuals[j] += ResidualPart<kBits>(w, shared, slot, first + slot, n);
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kOctet; ++i) {
    const int output = kBits == 3 ? lane / kTileThreads * kCodeTile + OutputOf(member, i) : lane * kOctet + i;
    result.sums[warp][output] = sums[i];
  }
  if constexpr (kBits > 4) {
    __syncwarp();
#pragma unroll
    for (int j = 0; j < kOctet; ++j) result.sums[warp][j * kWarp + lane] += residuals[j];
  }
  __syncthreads();

  const int n = n0 + thread;
  const bool there = n < w.N;
  float total = 0.0f;
  for (int i = 0; i < kWarps; ++i) total += result.sums[i][thread];
  if (gridDim.y > 1) {
    if (there) x.partial[static_cast<int64_t>(blockIdx.y) * w.N + n] = total;
    if (!LastBlock(x.counters + blockIdx.x, gridDim.y, shared.last)) return;
    total = 0.0f;
    if (there) {
      for (unsigned i = 0; i < gridDim.y; ++i) total += __ldcg(x.partial + static_cast<int64_t>(i) * w.N + n);
    }
  }
  if (!there) return;
  if (kBits == 3) total *= HalfToFloat(__ldg(w.output_scale + n));
  if (bias != nullptr) total += bias[n];
  if (residual != nullptr) total += residual[n];
  y[n] = total;
}

constexpr int kColumnThreads = 128;
constexpr int kBlocksAtOnce = 64;  // whose codes lie in shared memory

struct ColumnShared {
  uint32_t even_odd[2][kBlocksAtOnce][8];
  uint32_t phased[2][kBlocksAtOnce][8];
  float step[kBlocksAtOnce];
  int sum[kBlocksAtOnce];
};

// Block-major, one output a thread: 16 bytes of base and 8 of each plane a block of channels, side by side in a warp.
template <int kBits>
__global__ void __launch_bounds__(kColumnThreads) ColumnKernel(Weights w, Codes x, const float* bias, const float* residual, float* y) {
  constexpr int kHalves = kHalvesOf<kBits>;
  SOL_SHARED(ColumnShared, shared);
  const int thread = static_cast<int>(threadIdx.x), blocks = w.K / kBlock;
  const int n = static_cast<int>(blockIdx.x) * kColumnThreads + thread;
  const int read = n < w.N ? n : w.N - 1;
  const auto* base = reinterpret_cast<const uint4*>(w.base) + read;
  const auto* plane1 = reinterpret_cast<const uint2*>(w.plane1) + read;
  const auto* plane2 = reinterpret_cast<const uint2*>(w.plane2) + read;
  float total = 0.0f;
#pragma unroll 1
  for (int first = 0; first < blocks; first += kBlocksAtOnce) {
    const int count = blocks - first < kBlocksAtOnce ? blocks - first : kBlocksAtOnce;
    __syncthreads();
    for (int i = thread; i < count * 8; i += kColumnThreads) {
      const int slot = i / 8, word = i % 8;
      for (int h = 0; h < kHalves; ++h) {
        const int64_t at = (static_cast<int64_t>(h) * blocks + first + slot) * 8 + word;
        shared.even_odd[h][slot][word] = reinterpret_cast<const uint32_t*>(x.even_odd)[at];
        if (kBits > 4) shared.phased[h][slot][word] = reinterpret_cast<const uint32_t*>(x.phased)[at];
      }
      if (word == 0) {
        shared.step[slot] = x.step[first + slot];
        shared.sum[slot] = x.sum[first + slot];
      }
    }
    __syncthreads();
#pragma unroll 4
    for (int slot = 0; slot < count; ++slot) {
      const int64_t at = static_cast<int64_t>(first + slot) * w.N;
      const uint4 loaded = __ldg(base + at);
      uint2 b = make_uint2(0, 0), c = make_uint2(0, 0);
      if constexpr (kBits > 4) b = __ldg(plane1 + at);
      if constexpr (kBits > 6) c = __ldg(plane2 + at);
      const float scale = HalfToFloat(__ldg(w.scale + at + read));
      const int zero = __ldg(w.zero + at + read);
      const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
      int low[kHalves] = {}, rest[kHalves] = {};
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          low[h] = DotBytes(words[i] & kLowNibbles, shared.even_odd[h][slot][i], low[h]);
          rest[h] = DotBytes(words[i] & kHighNibbles, shared.even_odd[h][slot][4 + i], rest[h]);
        }
        if constexpr (kBits > 4) {
#pragma unroll
          for (int word = 0; word < 8; ++word) {
            const uint32_t codes = word % 2 == 0 ? Residual<kBits>(b.x, c.x, word / 2) : Residual<kBits>(b.y, c.y, word / 2);
            rest[h] = DotBytes(codes, shared.phased[h][slot][word], rest[h]);
          }
        }
      }
      total += shared.step[slot] * scale * Centred<kBits>(16 * Whole(low) + Whole(rest), zero, shared.sum[slot]);
    }
  }
  if (n >= w.N) return;
  if (bias != nullptr) total += bias[n];
  if (residual != nullptr) total += residual[n];
  y[n] = total;
}

using ChannelKernel = void (*)(Weights, Codes, int, const float*, const float*, float*);

void LaunchChannelRow(ChannelKernel kernel, Stream stream, const Weights& w, const Codes& codes, const float* bias, const float* residual, float* y) {
  const int blocks_a_warp = static_cast<int>(DivideUp(w.K / kBlock, int64_t{kWarps} * codes.splits));
  const dim3 grid(static_cast<unsigned>(DivideUp(w.N, kRowOutputs)), static_cast<unsigned>(codes.splits));
  Launch(kernel, grid, kRowOutputs, 0, stream, w, codes, blocks_a_warp, bias, residual, y);
}

template <int kBits>
void MultiplyRowOf(Stream stream, const Weights& w, const Codes& codes, const float* bias, const float* residual, float* y) {
  if (w.channel_major) {
    const auto kernel = w.N % kOctet == 0 ? ChannelRowKernel<kBits, true> : ChannelRowKernel<kBits, false>;
    LaunchChannelRow(kernel, stream, w, codes, bias, residual, y);
  } else {
    const dim3 grid(static_cast<unsigned>(DivideUp(w.N, kColumnThreads)));
    Launch(ColumnKernel<kBits>, grid, kColumnThreads, 0, stream, w, codes, bias, residual, y);
  }
}

}  // namespace

SplitK SplitRow(const Weights& w) {
  if (!w.channel_major) return {1, 0};
  // Enough warps to keep every multiprocessor's loads coming, and no more shares to add up than that takes.
  constexpr int64_t kWarpsWanted = 16;
  const int64_t blocks = w.K / kBlock, tiles = DivideUp(w.N, kRowOutputs);
  int64_t blocks_a_warp = DivideUp(tiles * blocks, kWarpsWanted * Multiprocessors());
  blocks_a_warp = blocks_a_warp > kMostBlocksAWarp ? kMostBlocksAWarp : blocks_a_warp;
  const int64_t splits = DivideUp(blocks, kWarps * blocks_a_warp);
  return {static_cast<int>(splits), static_cast<int>(splits > 1 ? tiles : 0)};
}

void MultiplyRow(Stream stream, const Weights& w, const Codes& codes, const float* bias, const float* residual, float* y) {
  if (w.bits == 3) return LaunchChannelRow(ChannelRowKernel<3, true>, stream, w, codes, bias, residual, y);
  (w.bits == 4 ? MultiplyRowOf<4> : w.bits == 6 ? MultiplyRowOf<6> : MultiplyRowOf<8>)(stream, w, codes, bias, residual, y);
}

}  // namespace sol::cuda
