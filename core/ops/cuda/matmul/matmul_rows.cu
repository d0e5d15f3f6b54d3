// Several rows times a matrix, by the matrix instruction m16n8k32 of bytes: y [rows, N] = x [rows, K] W + bias + residual.
//
// The formula is that of matmul_row.cu. A block of 32 channels is the depth of the instruction, so that each instruction's integer sums get
// the block's scales. A thread block has 128 outputs, 16 or 64 rows and a split of the channels. Weights become bytes 16 q + 4 b + c in shared
// memory once for all its rows:
//
//   codes [8, 128]    words of four channels of one output; word 2 i + w has channels i + 16 w + {0, 4, 8, 12}, the order `phased`
//                     at 3 bits numbers plus 128, and the scale is 16 m s, the zero point 128
//   a                 fragments of the rows' codes, int8 [16, 32]; b: of the weights, uint8 [32, 8]
//   sums              a lane has rows lane / 4 and lane / 4 + 8 of outputs 2 (lane % 4) and the next one
//
// The last thread block of a tile adds the splits up, always in the same order.

#include "cuda/device/block.h"
#include "cuda/matmul/codebook.h"
#include "cuda/matmul/matmul_kernels.h"
#include "cuda/matmul/nibbles.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kOutputs = 128;  // of a block, one a thread where scales and planes are read
constexpr int kTileRows = 16, kTileOutputs = 8;
constexpr int kPitch = kOutputs + 8;  // words: the four quads that an instruction's lanes read begin in different banks
constexpr int kMostRowTiles = 4;

struct TileShared {
  alignas(16) uint32_t codes[8][kPitch];  // word 2 i + w of an output: channels i + 16 w + {0, 4, 8, 12}
  alignas(8) float scale[kOutputs];
  alignas(8) int zero[kOutputs];
  bool last;
};

// Part of a block of channels that a thread loads, in registers while the block before is multiplied.
struct Loaded {
  uint32_t base[4];
  uint2 plane1, plane2;
  uint16_t scale;
  uint8_t zero;
};

// At 3 bits a thread has a quad of channels of eight outputs, codebook.h, and the scale of one.
struct LoadedCodes {
  QuadCodes quad;
  OutputScales scales;
  float scale;
  bool there;
};

__device__ __forceinline__ LoadedCodes LoadCodes(const Weights& w, int block, int n0) {
  LoadedCodes loaded;
  const int thread = static_cast<int>(threadIdx.x), quad = thread / 16, member = thread % kTileThreads;
  const int tile = n0 + thread % 16 / kTileThreads * kCodeTile;
  loaded.there = tile < w.N;
  if (loaded.there) {
    const int64_t first = static_cast<int64_t>(block) * kBlock + quad / 2 + quad % 2 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) loaded.quad.Load(w, (first + 4 * i) * (w.N / 4) + tile / 4, member, i);
    loaded.scales.Load(w, w.block_scale + static_cast<int64_t>(block) * w.N + tile, member);
  }
  const int n = n0 + thread < w.N ? n0 + thread : w.N - 1;
  const int m = __ldg(w.block_scale + static_cast<int64_t>(block) * w.N + n) & 63;
  loaded.scale = 16.0f * static_cast<float>(m) * HalfToFloat(__ldg(w.output_scale + n));
  return loaded;
}

__device__ __forceinline__ void StoreCodes(const LoadedCodes& loaded, TileShared& shared) {
  const int thread = static_cast<int>(threadIdx.x), member = thread % kTileThreads;
  if (loaded.there) {
    uint32_t selectors[kNumbersAThread];
    loaded.quad.Selectors(member, selectors);
    uint32_t* to = shared.codes[thread / 16] + thread % 16 / kTileThreads * kCodeTile;
#pragma unroll
    for (int i = 0; i < kNumbersAThread; ++i) {
      const uint32_t numbers = __byte_perm(loaded.scales.table[i].x, loaded.scales.table[i].y, selectors[i]);
      to[OutputOf(member, i)] = numbers ^ 0x80808080u;
    }
  }
  shared.scale[thread] = loaded.scale;
  shared.zero[thread] = 256;
}

// Channel-major: a thread has one quad of channels of eight outputs; block-major: one output.
template <int kBits, bool kChannelMajor>
__device__ __forceinline__ Loaded Load(const Weights& w, int block, int n0) {
  Loaded loaded;
  const int thread = static_cast<int>(threadIdx.x);
  const int n = n0 + thread < w.N ? n0 + thread : w.N - 1;
  const int64_t at = static_cast<int64_t>(block) * w.N + n;
  if constexpr (kChannelMajor) {
    const int octet = n0 + thread % 16 * 8, quad = thread / 16;
    const int64_t pitch = w.N / 2, first = static_cast<int64_t>(block) * kBlock + quad / 2 + quad % 2 * 16;
    const int count = w.N - octet < 8 ? w.N - octet : 8;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const uint8_t* from = w.base + (first + 4 * i) * pitch + octet / 2;
      uint32_t word = 0;
      if (w.N % 8 == 0) {
        if (count > 0) word = __ldg(reinterpret_cast<const uint32_t*>(from));
      } else {
#pragma unroll 1
        for (int j = 0; j < count / 2; ++j) word |= static_cast<uint32_t>(__ldg(from + j)) << 8 * j;
      }
      loaded.base[i] = word;
    }
  } else {
    const uint4 words = __ldg(reinterpret_cast<const uint4*>(w.base) + at);
    loaded.base[0] = words.x;
    loaded.base[1] = words.y;
    loaded.base[2] = words.z;
    loaded.base[3] = words.w;
  }
  loaded.plane1 = kBits > 4 ? __ldg(reinterpret_cast<const uint2*>(w.plane1) + at) : make_uint2(0, 0);
  loaded.plane2 = kBits > 6 ? __ldg(reinterpret_cast<const uint2*>(w.plane2) + at) : make_uint2(0, 0);
  loaded.scale = __ldg(w.scale + at);
  loaded.zero = __ldg(w.zero + at);
  return loaded;
}

// Writes the codes of the base plane, times 16, and of a block-major matrix the residual ones with them.
template <int kBits, bool kChannelMajor>
__device__ __forceinline__ void Store(const Loaded& loaded, TileShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (kChannelMajor) {
    uint32_t pairs[4];
    TransposeBytes(loaded.base, pairs);
    auto* to = reinterpret_cast<uint4*>(&shared.codes[thread / 16][thread % 16 * 8]);
    to[0] = make_uint4((pairs[0] & kLowNibbles) << 4, pairs[0] & kHighNibbles, (pairs[1] & kLowNibbles) << 4, pairs[1] & kHighNibbles);
    to[1] = make_uint4((pairs[2] & kLowNibbles) << 4, pairs[2] & kHighNibbles, (pairs[3] & kLowNibbles) << 4, pairs[3] & kHighNibbles);
  } else {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint32_t a = loaded.base[2 * half], b = loaded.base[2 * half + 1];
      const uint32_t even_a = (a & kLowNibbles) << 4, even_b = (b & kLowNibbles) << 4, odd_a = a & kHighNibbles, odd_b = b & kHighNibbles;
      uint32_t words[4] = {__byte_perm(even_a, even_b, 0x6420), __byte_perm(odd_a, odd_b, 0x6420), __byte_perm(even_a, even_b, 0x7531),
                           __byte_perm(odd_a, odd_b, 0x7531)};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kBits > 4) {
          words[i] |= half == 0 ? Residual<kBits>(loaded.plane1.x, loaded.plane2.x, i) : Residual<kBits>(loaded.plane1.y, loaded.plane2.y, i);
        }
        shared.codes[2 * i + half][thread] = words[i];
      }
    }
  }
  shared.scale[thread] = HalfToFloat(loaded.scale);
  shared.zero[thread] = TwiceZero<kBits>(loaded.zero);
}

// A channel-major matrix's residual codes come after its base, by other threads.
template <int kBits>
__device__ __forceinline__ void AddResiduals(const Loaded& loaded, TileShared& shared) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    shared.codes[2 * i][thread] |= Residual<kBits>(loaded.plane1.x, loaded.plane2.x, i);
    shared.codes[2 * i + 1][thread] |= Residual<kBits>(loaded.plane1.y, loaded.plane2.y, i);
  }
}

// kRowTiles of 16 rows, a warp each, or one for all warps, which then divide the outputs.
template <int kBits, bool kChannelMajor, int kRowTiles>
__global__ void __launch_bounds__(kThreads) TileKernel(Weights w, Codes x, int64_t rows, int blocks_a_share, const float* bias, const float* residual,
                                                       float* y) {
  constexpr int kHalves = kHalvesOf<kBits>;
  constexpr int kTiles = kOutputs / kTileOutputs * kRowTiles / kWarps;  // of a warp
  SOL_SHARED(TileShared, shared);
  const int lane = Lane(), warp = WarpOfBlock(), group = lane / 4, member = lane % 4;
  const int n0 = static_cast<int>(blockIdx.x) * kOutputs, first_tile = kRowTiles == 1 ? warp * kTiles : 0;
  const int64_t row0 = static_cast<int64_t>(blockIdx.y) * kRowTiles * kTileRows + (kRowTiles == 1 ? 0 : warp * kTileRows);
  const int blocks = w.K / kBlock, begin = static_cast<int>(blockIdx.z) * blocks_a_share;
  const int end = begin + blocks_a_share < blocks ? begin + blocks_a_share : blocks;
  // A lane's two rows; those past the last are read as the last and not written.
  int64_t own[2];
#pragma unroll
  for (int r = 0; r < 2; ++r) own[r] = row0 + group + 8 * r < rows ? row0 + group + 8 * r : rows - 1;

  float sums[kTiles][4] = {};
  const auto load = [&](int block) {
    if constexpr (kBits == 3) {
      return LoadCodes(w, block, n0);
    } else {
      return Load<kBits, kChannelMajor>(w, block, n0);
    }
  };
  auto loaded = load(begin);
#pragma unroll 1
  for (int block = begin; block < end; ++block) {
    __syncthreads();
    if constexpr (kBits == 3) {
      StoreCodes(loaded, shared);
    } else {
      Store<kBits, kChannelMajor>(loaded, shared);
    }
    if constexpr (kChannelMajor && kBits > 4) {
      __syncthreads();
      AddResiduals<kBits>(loaded, shared);
    }
    __syncthreads();
    if (block + 1 < end) loaded = load(block + 1);

    uint32_t a[kHalves][4];
    float step[2];
    int sum[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      step[r] = x.step[own[r] * blocks + block];
      sum[r] = x.sum[own[r] * blocks + block];
#pragma unroll
      for (int h = 0; h < kHalves; ++h) {
        const auto* codes = reinterpret_cast<const uint32_t*>(x.phased + (own[r] * kHalves + h) * w.K + block * kBlock);
        a[h][r] = codes[member];
        a[h][2 + r] = codes[4 + member];
      }
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
      const int column = (first_tile + tile) * kTileOutputs;
      const uint32_t b[2] = {shared.codes[member][column + group], shared.codes[4 + member][column + group]};
      int dots[kHalves][4] = {};
#pragma unroll
      for (int h = 0; h < kHalves; ++h) MultiplyTile(dots[h], a[h], b);
      const float2 scales = *reinterpret_cast<const float2*>(&shared.scale[column + 2 * member]);
      const int2 zeros = *reinterpret_cast<const int2*>(&shared.zero[column + 2 * member]);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int r = i / 2;
        int whole = dots[0][i];
        if constexpr (kHalves == 2) whole = kHalfStep * whole + dots[1][i];
        const float scale = i % 2 == 0 ? scales.x : scales.y;
        const int zero = i % 2 == 0 ? zeros.x : zeros.y;
        sums[tile][i] += step[r] * scale * static_cast<float>(2 * whole - zero * sum[r]);
      }
    }
  }

  // Visits the results of a lane: f(result, place in [rows, N], output).
  const auto each = [&](const auto& f) {
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int n = n0 + (first_tile + tile) * kTileOutputs + 2 * member + i % 2;
        const int64_t row = row0 + group + 8 * (i / 2);
        if (n < w.N && row < rows) f(sums[tile][i], row * w.N + n, n);
      }
    }
  };
  if (gridDim.z > 1) {
    float* mine = x.partial + blockIdx.z * rows * w.N;
    each([&](float& result, int64_t at, int) { mine[at] = result; });
    if (!LastBlock(x.counters + blockIdx.y * gridDim.x + blockIdx.x, gridDim.z, shared.last)) return;
    each([](float& result, int64_t, int) { result = 0.0f; });
#pragma unroll 1
    for (unsigned s = 0; s < gridDim.z; ++s) {
      const float* split = x.partial + s * rows * w.N;
      each([&](float& result, int64_t at, int) { result += __ldcg(split + at); });
    }
  }
  each([&](float& result, int64_t at, int n) {
    float total = result;
    if (bias != nullptr) total += bias[n];
    if (residual != nullptr) total += residual[at];
    y[at] = total;
  });
}

int RowTiles(int64_t rows) { return rows <= kTileRows ? 1 : kMostRowTiles; }

template <int kBits, bool kChannelMajor>
void MultiplyRowsOf(Stream stream, const Weights& w, const Codes& codes, int64_t rows, const float* bias, const float* residual, float* y) {
  const int row_tiles = RowTiles(rows), share = static_cast<int>(DivideUp(w.K / kBlock, codes.splits));
  const dim3 grid(static_cast<unsigned>(DivideUp(w.N, kOutputs)), static_cast<unsigned>(DivideUp(rows, row_tiles * kTileRows)),
                  static_cast<unsigned>(DivideUp(w.K / kBlock, share)));
  Launch(row_tiles == 1 ? TileKernel<kBits, kChannelMajor, 1> : TileKernel<kBits, kChannelMajor, kMostRowTiles>, grid, kThreads, 0, stream, w,
         codes, rows, share, bias, residual, y);
}

}  // namespace

SplitK SplitRows(const Weights& w, int64_t rows) {
  const int64_t blocks = w.K / kBlock, tiles = DivideUp(w.N, kOutputs) * DivideUp(rows, RowTiles(rows) * kTileRows);
  constexpr int64_t kBlocksWanted = 4, kMostSplits = 32;  // a multiprocessor; more shares cost more to add up than they hide
  int64_t splits = kBlocksWanted * Multiprocessors() / tiles;
  splits = splits > blocks / 4 ? blocks / 4 : splits;
  splits = splits > kMostSplits ? kMostSplits : splits < 1 ? 1 : splits;
  return {static_cast<int>(splits), static_cast<int>(splits > 1 ? tiles : 0)};
}

void MultiplyRows(Stream stream, const Weights& w, const Codes& codes, int64_t rows, const float* bias, const float* residual, float* y) {
  if (w.bits == 3) return MultiplyRowsOf<3, true>(stream, w, codes, rows, bias, residual, y);
  const auto multiply = w.channel_major ? (w.bits == 4 ? MultiplyRowsOf<4, true> : w.bits == 6 ? MultiplyRowsOf<6, true> : MultiplyRowsOf<8, true>)
                                        : (w.bits == 4 ? MultiplyRowsOf<4, false> : w.bits == 6 ? MultiplyRowsOf<6, false> : MultiplyRowsOf<8, false>);
  multiply(stream, w, codes, rows, bias, residual, y);
}

}  // namespace sol::cuda
