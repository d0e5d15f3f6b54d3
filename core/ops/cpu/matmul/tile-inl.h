// Several tokens times some outputs of a matrix: y [tokens, outputs] += x [tokens, K] W, over some of the blocks of channels.
//
// The formula and the order of float32 are those of row-inl.h, so that a token's outputs have the bits that it has alone. Of each block of 32
// channels the planes of 64 outputs, with vectors of 64 bytes of 128, are merged to bytes 16 q + 4 b + c once, in the first-level cache, and every
// token is multiplied by these bytes:
//
//   quads [8, …]     32-bit words: four channels of one output, a byte each. Quad i of a block-major matrix holds four channels in the
//                    order `even_odd`, of a channel-major one in the order `phased`; the tokens' codes lie in the same order.
//   scale, zero […]  float32
//
// At 3 bits the bytes are entries of the tables plus 128.
//
// A vector of int32 has one output a lane; four channels of a token are broadcast to all lanes. Up to four tokens share the bytes in
// registers. Outputs past N are computed on zeros.

#if defined(SOL_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_TILE_INL_H_
#undef SOL_TILE_INL_H_
#else
#define SOL_TILE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "cpu/codebook/decode-inl.h"
#include "cpu/matmul/dot-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/views-inl.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Bits that are flipped in a code's byte: Arm without i8mm multiplies signed bytes only, so there it holds the code less 128. Sums then start with
// 128 times the sum of the activations' codes.
constexpr uint32_t kFlip = HWY_TARGET_IS_NEON && !SOL_ARM_I8MM ? 0x80808080u : 0;

// Most outputs that are merged at once.
constexpr size_t kWide = HWY_TARGET <= HWY_AVX3 ? 2 * kTile : kTile;

// One block of a tile: quads of four channels whose bytes are 16 q + 4 b + c.
struct Merged {
  HWY_ALIGN uint32_t quads[kBlock / 4][kWide];
#if SOL_ARM_I8MM
  HWY_ALIGN uint32_t octets[kBlock / 8][2 * kWide];  // eight channels of an output side by side: two quads
#endif
  HWY_ALIGN float scale[kWide];
  HWY_ALIGN float zero[kWide];
};

// A tile's part of one block, with all its `width` outputs readable.
class TileView {
 public:
  TileView(const Nested& w, const BlockPlace& place, bool channel_major, size_t b, size_t n, size_t width)
      : base(place.base), scale(place.scale), zero(place.zero), stride(place.stride) {
    const size_t at = b * w.N + n, left = std::min(width, w.N - n);
    plane1 = w.bits > 4 ? w.plane1 + at * 8 : nullptr;
    plane2 = w.bits > 6 ? w.plane2 + at * 8 : nullptr;
    if (left == width) return;

    const auto copy = [left](auto*& from, auto& to, size_t size) {
      std::memset(to, 0, sizeof(to));
      std::memcpy(to, from, left * size);
      from = to;
    };
    copy(scale, scale_, sizeof(uint16_t));
    copy(zero, zero_, 1);
    if (plane1 != nullptr) copy(plane1, plane1_, 8);
    if (plane2 != nullptr) copy(plane2, plane2_, 8);
    std::memset(base_, 0, sizeof(base_));
    if (channel_major) {
      for (size_t k = 0; k < kBlock; ++k) std::memcpy(base_ + k * kWide / 2, base + k * stride, left / 2);
      stride = kWide / 2;
    } else {
      std::memcpy(base_, base, left * 16);
    }
    base = base_;
  }
  TileView(const TileView&) = delete;
  TileView& operator=(const TileView&) = delete;

  const uint8_t* base;
  const uint16_t* scale;
  const uint8_t* zero;
  const uint8_t* plane1;
  const uint8_t* plane2;
  size_t stride;

 private:
  uint8_t base_[kWide * 16];
  uint16_t scale_[kWide];
  uint8_t zero_[kWide];
  uint8_t plane1_[kWide * 8];
  uint8_t plane2_[kWide * 8];
};

HWY_INLINE void MergeScales(const TileView& v, size_t width, Merged& out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const hn::Rebind<uint8_t, decltype(df)> d8;
  for (size_t i = 0; i < width; i += hn::MaxLanes(df)) {
    hn::Store(hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, v.scale + i))), df, out.scale + i);
    hn::Store(hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, v.zero + i))), df, out.zero + i);
  }
}

// Quads in the order `even_odd`.
HWY_INLINE void MergeBlockMajor(const TileView& v, size_t width, Merged& out) {
  const hn::ScalableTag<uint8_t> d8;
  using D8 = decltype(d8);
  const hn::Repartition<uint16_t, D8> d16;
  const hn::Repartition<uint32_t, D8> d32;
  const hn::Repartition<uint64_t, D8> d64;
  const hn::Rebind<uint8_t, decltype(d16)> d_half;
  using V32 = hn::Vec<decltype(d32)>;
  constexpr size_t kBytes = hn::MaxLanes(d8), kOutputs = kBytes / 4, kBlocks = kBytes / 16;
  HWY_ALIGN uint32_t order[kOutputs];
  for (size_t o = 0; o < kOutputs; ++o) order[o] = static_cast<uint32_t>(o % kBlocks * 4 + o / kBlocks);
  const auto natural = hn::SetTableIndices(d32, order);

  for (size_t n = 0; n < width; n += kOutputs) {
    V32 even[4], odd[4];
    for (size_t i = 0; i < 4; ++i) {
      const size_t at = n + i * kBlocks;
      const auto packed = hn::BitCast(d16, hn::LoadU(d8, v.base + at * 16));
      auto low = hn::And(hn::ShiftLeft<4>(packed), hn::Set(d16, 0xF0F0));
      auto high = hn::And(packed, hn::Set(d16, 0xF0F0));
      if (v.plane1 != nullptr) {
        const auto p = hn::PromoteTo(d16, hn::LoadU(d_half, v.plane1 + at * 8));
        low = hn::OrAnd(low, hn::ShiftLeft<2>(p), hn::Set(d16, 0x000C));
        low = hn::OrAnd(low, hn::ShiftLeft<6>(p), hn::Set(d16, 0x0C00));
        high = hn::OrAnd(high, p, hn::Set(d16, 0x000C));
        high = hn::OrAnd(high, hn::ShiftLeft<4>(p), hn::Set(d16, 0x0C00));
      }
      if (v.plane2 != nullptr) {
        const auto p = hn::PromoteTo(d16, hn::LoadU(d_half, v.plane2 + at * 8));
        low = hn::OrAnd(low, p, hn::Set(d16, 0x0003));
        low = hn::OrAnd(low, hn::ShiftLeft<4>(p), hn::Set(d16, 0x0300));
        high = hn::OrAnd(high, hn::ShiftRight<2>(p), hn::Set(d16, 0x0003));
        high = hn::OrAnd(high, hn::ShiftLeft<2>(p), hn::Set(d16, 0x0300));
      }
      even[i] = hn::BitCast(d32, low);
      odd[i] = hn::BitCast(d32, high);
    }
    // Lane q of an output's four becomes quad q.
    const auto scatter = [&](const V32(&four)[4], size_t first) HWY_ATTR {
      const auto t01l = hn::BitCast(d64, hn::InterleaveLower(d32, four[0], four[1]));
      const auto t23l = hn::BitCast(d64, hn::InterleaveLower(d32, four[2], four[3]));
      const auto t01u = hn::BitCast(d64, hn::InterleaveUpper(d32, four[0], four[1]));
      const auto t23u = hn::BitCast(d64, hn::InterleaveUpper(d32, four[2], four[3]));
      const V32 quads[4] = {
          hn::BitCast(d32, hn::InterleaveLower(d64, t01l, t23l)), hn::BitCast(d32, hn::InterleaveUpper(d64, t01l, t23l)),
          hn::BitCast(d32, hn::InterleaveLower(d64, t01u, t23u)), hn::BitCast(d32, hn::InterleaveUpper(d64, t01u, t23u))};
      for (size_t q = 0; q < 4; ++q) {
        const V32 in_order = kBlocks == 1 ? quads[q] : hn::TableLookupLanes(quads[q], natural);
        hn::Store(hn::Xor(in_order, hn::Set(d32, kFlip)), d32, out.quads[first + q] + n);
      }
    };
    scatter(even, 0);
    scatter(odd, 4);
  }
}

// The bytes of a row for whose interleaved nibbles OrderOutputs has nothing left to do but to put low ones beside high ones.
template <class D8, class V = hn::Vec<D8>>
HWY_INLINE V LoadInOrder(D8 d8, const uint8_t* from) {
  const V row = hn::LoadU(d8, from);
#if HWY_TARGET <= HWY_AVX3
  if constexpr (hn::MaxLanes(d8) == 64) {
    const hn::Repartition<uint16_t, D8> d16;
    HWY_ALIGN static constexpr uint16_t kPairs[32] = {0, 4, 8,  12, 16, 20, 24, 28, 1, 5, 9,  13, 17, 21, 25, 29,
                                                      2, 6, 10, 14, 18, 22, 26, 30, 3, 7, 11, 15, 19, 23, 27, 31};
    return hn::BitCast(d8, hn::TableLookupLanes(hn::BitCast(d16, row), hn::SetTableIndices(d16, kPairs)));
  }
#endif
  return row;
}

// Quads in the order `phased`: quad 2 f + j holds channels 16 j + f, + 4, + 8, + 12. kBytes: of a row in a vector. At 8 bits the low halves of the bytes are
// left for MergePlanes to write. Asks for what is read later bit by bit.
template <int kBits, size_t kBytes, class Ask>
HWY_INLINE void MergeRows(const TileView& v, size_t width, const Ask& ask, Merged& out) {
  const hn::CappedTag<uint8_t, kBytes> d8;
  using D8 = decltype(d8);
  const hn::Repartition<uint16_t, D8> d16;
  const hn::Repartition<uint32_t, D8> d32;
  using V32 = hn::Vec<decltype(d32)>;
  constexpr size_t kOutputs = hn::MaxLanes(d32);
  for (size_t n = 0; n < width; n += 2 * hn::MaxLanes(d8)) {
    for (size_t quad = 0; quad < kBlock / 4; ++quad) {
      const size_t first = quad % 2 * 16 + quad / 2;
      const uint8_t* from = v.base + first * v.stride + n / 2;
      hn::Vec<D8> q[4];
      ask(quad);
      InterleaveRows(d8, LoadInOrder(d8, from), LoadInOrder(d8, from + 4 * v.stride), LoadInOrder(d8, from + 8 * v.stride),
                     LoadInOrder(d8, from + 12 * v.stride), q[0], q[1], q[2], q[3]);
      V32 even[4], odd[4], ordered[8];
      for (size_t i = 0; i < 4; ++i) {
        auto low = hn::ShiftLeft<4>(hn::BitCast(d16, q[i])), high = hn::BitCast(d16, q[i]);
        if constexpr (kBits < 8) {
          low = hn::And(low, hn::Set(d16, 0xF0F0));
          high = hn::And(high, hn::Set(d16, 0xF0F0));
        }
        even[i] = hn::BitCast(d32, low);
        odd[i] = hn::BitCast(d32, high);
      }
      if constexpr (HWY_TARGET <= HWY_AVX3 && hn::MaxLanes(d8) == 64) {
        for (size_t i = 0; i < 4; ++i) {
          ordered[2 * i] = hn::InterleaveLower(d32, even[i], odd[i]);
          ordered[2 * i + 1] = hn::InterleaveUpper(d32, even[i], odd[i]);
        }
      } else {
        OrderOutputs(d32, even, odd, ordered);
      }
      for (size_t i = 0; i < 8; ++i) {
        hn::Store(hn::Xor(ordered[i], hn::Set(d32, kFlip)), d32, out.quads[quad] + n + i * kOutputs);
      }
    }
  }
}

// Adds the residual planes to quads in the order `phased`.
template <int kBits>
HWY_INLINE void MergePlanes(const TileView& v, size_t width, Merged& out) {
  const hn::ScalableTag<uint32_t> d32;
  const hn::Repartition<uint8_t, decltype(d32)> d8;
  using V8 = hn::Vec<decltype(d8)>;
  constexpr size_t kOutputs = hn::MaxLanes(d32);
  const auto mask = hn::Set(d8, kPlaneField<kBits>);
  for (size_t n = 0; n < width; n += kOutputs) {
    const auto halves = [&](const uint8_t* plane, V8(&to)[2]) HWY_ATTR __attribute__((always_inline)) {
      const auto low = hn::BitCast(d32, hn::LoadU(d8, plane + n * 8)), high = hn::BitCast(d32, hn::LoadU(d8, plane + n * 8 + 4 * kOutputs));
      to[0] = hn::BitCast(d8, hn::ConcatEven(d32, high, low));
      to[1] = hn::BitCast(d8, hn::ConcatOdd(d32, high, low));
    };
    V8 b[2], c[2];
    halves(v.plane1, b);
    halves(kBits == 8 ? v.plane2 : v.plane1, c);
    for (size_t j = 0; j < 2; ++j) {
      V8 fields[4];
      PlaneFields<kBits>(b[j], c[j], fields);
      for (size_t f = 0; f < 4; ++f) {
        uint32_t* to = out.quads[2 * f + j] + n;
        const V8 base = hn::BitCast(d8, hn::Load(d32, to));
        hn::Store(hn::BitCast(d32, kBits == 8 ? hn::BitwiseIfThenElse(mask, fields[f], base) : hn::OrAnd(base, fields[f], mask)), d32, to);
      }
    }
  }
}

template <int kBits, class Ask>
HWY_INLINE void MergeChannelMajor(const TileView& v, size_t width, const Ask& ask, Merged& out) {
  if (width == kTile) {
    MergeRows<kBits, kTile / 2>(v, width, ask, out);
  } else {
    MergeRows<kBits, kWide / 2>(v, width, ask, out);
  }
  if constexpr (kBits > 4) MergePlanes<kBits>(v, width, out);
}

#if SOL_ARM_I8MM
HWY_INLINE void JoinQuads(size_t width, Merged& m) {
  for (size_t i = 0; i < kBlock / 8; ++i) {
    for (size_t n = 0; n < width; n += 4) {
      const uint32x4_t first = vld1q_u32(m.quads[2 * i] + n), second = vld1q_u32(m.quads[2 * i + 1] + n);
      vst1q_u32(m.octets[i] + 2 * n, vzip1q_u32(first, second));
      vst1q_u32(m.octets[i] + 2 * n + 4, vzip2q_u32(first, second));
    }
  }
}
#endif

// The integer sums of one block for some outputs of one half of one token's activations.
template <class DI, int kBits>
class CodeSum {
 public:
  using VI = hn::Vec<DI>;
  using VU = hn::Vec<hn::Repartition<uint8_t, DI>>;
  using VX = hn::Vec<hn::Repartition<int8_t, DI>>;

#if SOL_BYTE_PAIRS
  // The halves of a code are small enough for a block's sums to stay in 16 bits; level 4 has one only.
  using D16 = hn::Repartition<int16_t, DI>;
  HWY_INLINE CodeSum() : high_(hn::Zero(D16())), low_(hn::Zero(D16())) {}
  HWY_INLINE void Add(VU codes, VX x) {
    const D16 d16;
    high_ = hn::Add(high_, hn::SatWidenMulPairwiseAdd(d16, hn::ShiftRight<4>(codes), x));
    if constexpr (kBits == 4) return;
    const VU nibble = hn::Set(hn::Repartition<uint8_t, DI>(), uint8_t{0x0F});
    low_ = hn::Add(low_, hn::SatWidenMulPairwiseAdd(d16, hn::And(codes, nibble), x));
  }
  HWY_INLINE VI Total() const {
    const DI di;
    const auto one = hn::Set(D16(), 1);
    const VI high = hn::ShiftLeft<4>(hn::WidenMulPairwiseAdd(di, high_, one));
    if constexpr (kBits == 4) return high;
    return hn::Add(high, hn::WidenMulPairwiseAdd(di, low_, one));
  }

 private:
  hn::Vec<D16> high_, low_;
#else
  HWY_INLINE CodeSum() : sum_(hn::Zero(DI())) {}
  HWY_INLINE void Add(VU codes, VX x) {
    sum_ = DotBytes(DI(), codes, x, sum_);
  }
  HWY_INLINE VI Total() const { return sum_; }

 private:
  VI sum_;
#endif
};

// Integer sums of one block for the outputs of a tile from `n` on, of kTokens tokens whose halves lie K codes apart.
#if !HWY_TARGET_IS_NEON
template <int kBits, size_t kTokens, size_t kVectors, class DI>
class BlockProducts {
 public:
  using VI = hn::Vec<DI>;
  static constexpr size_t kHalves = HalvesAt(kBits), kLanes = hn::MaxLanes(DI());

  HWY_INLINE BlockProducts(const int8_t* x, size_t K) : x_(x), K_(K) {}

  HWY_INLINE void Multiply(const Merged& w, size_t n, VI (&totals)[kTokens][kVectors]) const {
    const DI di;
    const hn::Repartition<uint8_t, DI> d8;
    const hn::Repartition<int8_t, DI> dx;
    CodeSum<DI, kBits> acc[kTokens * kHalves][kVectors];
#if SOL_BYTE_PAIRS
#pragma GCC unroll 1  // unrolled, GCC puts all products before the sums and runs out of registers
#endif
    for (size_t quad = 0; quad < kBlock / 4; ++quad) {
      hn::Vec<decltype(d8)> codes[kVectors];
      for (size_t i = 0; i < kVectors; ++i) {
        codes[i] = hn::BitCast(d8, hn::Load(di, reinterpret_cast<const int32_t*>(w.quads[quad]) + n + i * kLanes));
      }
      for (size_t r = 0; r < kTokens * kHalves; ++r) {
        int32_t four;
        std::memcpy(&four, x_ + r * K_ + quad * 4, sizeof(four));
        const auto broadcast = hn::BitCast(dx, hn::Set(di, four));
        for (size_t i = 0; i < kVectors; ++i) acc[r][i].Add(codes[i], broadcast);
      }
    }
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t i = 0; i < kVectors; ++i) {
        totals[t][i] = acc[t * kHalves][i].Total();
        if constexpr (kHalves == 2) totals[t][i] = JoinHalves(di, totals[t][i], acc[2 * t + 1][i].Total());
      }
    }
  }

 private:
  const int8_t* x_;
  size_t K_;
};

#elif SOL_ARM_I8MM
// Two outputs times two rows of activations an instruction, eight channels each.
template <int kBits, size_t kTokens, size_t kVectors, class DI>
class BlockProducts {
 public:
  using VI = hn::Vec<DI>;
  static constexpr size_t kHalves = HalvesAt(kBits), kRows = kTokens * kHalves, kPairs = (kRows + 1) / 2, kOctets = kBlock / 8;

  HWY_INLINE BlockProducts(const int8_t* x, size_t K) {
    for (size_t p = 0; p < kPairs; ++p) {
      const int8_t *first = x + 2 * p * K, *second = kRows == 1 ? first : first + K;
      for (size_t o = 0; o < kOctets; ++o) x_[p][o] = vcombine_s8(vld1_s8(first + 8 * o), vld1_s8(second + 8 * o));
    }
  }

  HWY_INLINE void Multiply(const Merged& w, size_t n, VI (&totals)[kTokens][kVectors]) const {
    for (size_t i = 0; i < kVectors; ++i) {
      int32x4_t low[kPairs], high[kPairs];  // outputs 0 and 1, outputs 2 and 3: a lane for each of the two rows
      for (size_t p = 0; p < kPairs; ++p) low[p] = high[p] = vdupq_n_s32(0);
      for (size_t o = 0; o < kOctets; ++o) {
        const uint8_t* from = reinterpret_cast<const uint8_t*>(w.octets[o] + 2 * (n + 4 * i));
        const uint8x16_t codes0 = vld1q_u8(from), codes1 = vld1q_u8(from + 16);
        for (size_t p = 0; p < kPairs; ++p) {
          low[p] = vusmmlaq_s32(low[p], codes0, x_[p][o]);
          high[p] = vusmmlaq_s32(high[p], codes1, x_[p][o]);
        }
      }
      for (size_t p = 0; p < kPairs; ++p) {
        const VI first(vuzp1q_s32(low[p], high[p])), second(vuzp2q_s32(low[p], high[p]));
        if constexpr (kHalves == 2) {
          totals[p][i] = JoinHalves(DI(), first, second);
        } else {
          totals[2 * p][i] = first;
          if constexpr (kTokens > 1) totals[2 * p + 1][i] = second;
        }
      }
    }
  }

 private:
  int8x16_t x_[kPairs][kOctets];
};

#else
template <int kBits, size_t kTokens, size_t kVectors, class DI>
class BlockProducts {
 public:
  using VI = hn::Vec<DI>;
  static constexpr size_t kHalves = HalvesAt(kBits), kRows = kTokens * kHalves, kLanes = hn::MaxLanes(DI());

  HWY_INLINE BlockProducts(const int8_t* x, size_t K) {
    const DI di;
    const hn::Repartition<int8_t, DI> d8;
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t i = 0; i < 2; ++i) x_[r][i] = hn::LoadU(d8, x + r * K + 16 * i);
      const auto one = hn::Set(d8, int8_t{1});
      start_[r] = hn::ShiftLeft<7>(hn::SumOfLanes(di, DotSigned(one, x_[r][1], DotSigned(one, x_[r][0], hn::Zero(di)))));
    }
  }

  HWY_INLINE void Multiply(const Merged& w, size_t n, VI (&totals)[kTokens][kVectors]) const {
    const DI di;
    VI sums[kRows][kVectors];
    for (size_t r = 0; r < kRows; ++r) {
      for (size_t i = 0; i < kVectors; ++i) sums[r][i] = start_[r];
    }
    AddQuad<0>(w, n, sums);
    AddQuad<1>(w, n, sums);
    AddQuad<2>(w, n, sums);
    AddQuad<3>(w, n, sums);
    AddQuad<4>(w, n, sums);
    AddQuad<5>(w, n, sums);
    AddQuad<6>(w, n, sums);
    AddQuad<7>(w, n, sums);
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t i = 0; i < kVectors; ++i) {
        totals[t][i] = kHalves == 2 ? JoinHalves(di, sums[t * kHalves][i], sums[t * kHalves + kHalves - 1][i]) : sums[t][i];
      }
    }
  }

 private:
  template <size_t kQuad>
  HWY_INLINE void AddQuad(const Merged& w, size_t n, VI (&sums)[kRows][kVectors]) const {
    const hn::Repartition<int8_t, DI> d8;
    hn::Vec<decltype(d8)> codes[kVectors];
    for (size_t i = 0; i < kVectors; ++i) codes[i] = hn::Load(d8, reinterpret_cast<const int8_t*>(w.quads[kQuad] + n + i * kLanes));
    for (size_t r = 0; r < kRows; ++r) {
#if SOL_ARM_DOT
      for (size_t i = 0; i < kVectors; ++i) sums[r][i] = VI(vdotq_laneq_s32(sums[r][i].raw, codes[i].raw, x_[r][kQuad / 4].raw, kQuad % 4));
#else
      const auto four = hn::BitCast(d8, hn::Broadcast<kQuad % 4>(hn::BitCast(DI(), x_[r][kQuad / 4])));
      for (size_t i = 0; i < kVectors; ++i) sums[r][i] = DotSigned(codes[i], four, sums[r][i]);
#endif
    }
  }

  hn::Vec<hn::Repartition<int8_t, DI>> x_[kRows][2];  // the codes, four quads a vector
  VI start_[kRows];
};
#endif

#if SOL_BYTE_PAIRS
// At level 8 codes and activations are multiplied as numbers of 16 bits: half the products that halves of both would take.
template <size_t kTokens, size_t kVectors, class DI>
class BlockProducts<8, kTokens, kVectors, DI> {
 public:
  using VI = hn::Vec<DI>;
  static constexpr size_t kLanes = hn::MaxLanes(DI());

  HWY_INLINE BlockProducts(const int8_t* x, size_t K) {
    const hn::CappedTag<int16_t, kBlock / 2> d16;
    const hn::Repartition<int8_t, decltype(d16)> d8;
    const auto step = hn::Set(d16, kHalfStep);
    for (size_t t = 0; t < kTokens; ++t) {
      const int8_t* halves = x + 2 * t * K;
      for (size_t i = 0; i < kBlock; i += hn::MaxLanes(d8)) {
        const auto coarse = hn::BitCast(d16, hn::LoadU(d8, halves + i)), fine = hn::BitCast(d16, hn::LoadU(d8, halves + K + i));
        const auto first = [](auto v) HWY_ATTR { return hn::ShiftRight<8>(hn::ShiftLeft<8>(v)); };  // of each pair of channels
        const auto second = [](auto v) HWY_ATTR { return hn::ShiftRight<8>(v); };
        hn::Store(hn::Add(hn::Mul(first(coarse), step), first(fine)), d16, words_[t][0] + i / 2);
        hn::Store(hn::Add(hn::Mul(second(coarse), step), second(fine)), d16, words_[t][1] + i / 2);
      }
    }
  }

  HWY_INLINE void Multiply(const Merged& w, size_t n, VI (&totals)[kTokens][kVectors]) const {
    const DI di;
    const hn::Repartition<uint16_t, DI> du;
    const hn::Repartition<int16_t, DI> d16;
    for (size_t t = 0; t < kTokens; ++t) {
      for (size_t i = 0; i < kVectors; ++i) totals[t][i] = hn::Zero(di);
    }
#pragma GCC unroll 1
    for (size_t quad = 0; quad < kBlock / 4; ++quad) {
      hn::Vec<decltype(d16)> first[kVectors], second[kVectors];
      for (size_t i = 0; i < kVectors; ++i) {
        const auto codes = hn::BitCast(du, hn::Load(di, reinterpret_cast<const int32_t*>(w.quads[quad]) + n + i * kLanes));
        first[i] = hn::BitCast(d16, hn::And(codes, hn::Set(du, uint16_t{0x00FF})));
        second[i] = hn::BitCast(d16, hn::ShiftRight<8>(codes));
      }
      for (size_t t = 0; t < kTokens; ++t) {
        const auto a = Pair(t, 0, quad), b = Pair(t, 1, quad);
        for (size_t i = 0; i < kVectors; ++i) {
          totals[t][i] = hn::Add(totals[t][i], hn::WidenMulPairwiseAdd(di, first[i], a));
          totals[t][i] = hn::Add(totals[t][i], hn::WidenMulPairwiseAdd(di, second[i], b));
        }
      }
    }
  }

 private:
  HWY_INLINE hn::Vec<hn::Repartition<int16_t, DI>> Pair(size_t t, size_t which, size_t quad) const {
    int32_t pair;
    std::memcpy(&pair, words_[t][which] + 2 * quad, sizeof(pair));
    return hn::BitCast(hn::Repartition<int16_t, DI>(), hn::Set(DI(), pair));
  }

  HWY_ALIGN int16_t words_[kTokens][2][kBlock / 2];  // activations of channels 0 and 2 of every quad, then of 1 and 3
};
#endif

// Tokens at a time: the registers hold so many rows of sums.
template <int kBits>
constexpr size_t kTokensAtATime = SOL_BYTE_PAIRS ? 4 : 4 / HalvesAt(kBits);

// The sum of a block's codes.
HWY_INLINE int32_t SumOfCodes(const int8_t* codes) {
  int32_t sum = 0;
  for (size_t k = 0; k < kBlock; ++k) sum += codes[k];
  return sum;
}

// y[t * stride + i] += one block, for kTokens tokens, whose halves lie K codes apart, and the tile's `width` outputs i.
template <size_t kTokens, int kBits>
HWY_INLINE void TileBlock(const Merged& w, size_t width, const int8_t* x, size_t K, const float* step, const float* sum, size_t blocks,
                          float center, float* y, size_t stride) {
  const hn::ScalableTag<int32_t> di;
  using DI = decltype(di);
  const hn::Rebind<float, DI> df;
  using VF = hn::Vec<decltype(df)>;
  using Scale = BlockScale<DI, kBits, 1>;
  constexpr size_t kLanes = hn::MaxLanes(di);
  // As many sums as the registers hold; bytes of 8 bits have two for each where bytes are multiplied in pairs.
  constexpr size_t kVectors = (kLanes >= 16 ? 4 : 2) / (SOL_BYTE_PAIRS && (kBits == 6 || kBits == 3) ? 2 : 1);
  const BlockProducts<kBits, kTokens, kVectors, DI> products(x, K);
  [[maybe_unused]] int32_t first_sums[kTokens];
  if constexpr (kBits == 3) {
    for (size_t t = 0; t < kTokens; ++t) first_sums[t] = -128 * SumOfCodes(x + t * K);
  }
#if HWY_TARGET_IS_NEON
  // A lane a token: Arm multiplies by one lane.
  static_assert(kTokens <= 4, "lanes");
  HWY_ALIGN float step_lanes[4] = {}, sum_lanes[4] = {}, center_lanes[4] = {};
  for (size_t t = 0; t < kTokens; ++t) {
    step_lanes[t] = step[t * blocks];
    sum_lanes[t] = sum[t * blocks];
    center_lanes[t] = -center * sum[t * blocks];
  }
  const auto steps = hn::Load(df, step_lanes), block_sums = hn::Load(df, sum_lanes), centers = hn::Load(df, center_lanes);
#endif
  for (size_t n = 0; n < width; n += kVectors * kLanes) {
    hn::Vec<DI> totals[kTokens][kVectors];
    products.Multiply(w, n, totals);
    for (size_t i = 0; i < kVectors; ++i) {
      const VF scale = hn::Load(df, w.scale + n + i * kLanes);
      const auto add = [&](size_t t, VF token_step, [[maybe_unused]] VF token_sum, [[maybe_unused]] VF token_center) HWY_ATTR __attribute__((always_inline)) {
        float* to = y + t * stride + n + i * kLanes;
        if constexpr (kBits == 3) {
          const VF factor = hn::Mul(scale, hn::Mul(token_step, hn::Set(df, 16.0f)));
          const VF total = hn::ConvertTo(df, hn::Add(totals[t][i], hn::Set(di, first_sums[t])));
          hn::StoreU(hn::MulAdd(factor, total, hn::LoadU(df, to)), df, to);
        } else {
          Scale::Add(totals[t][i], scale, hn::Load(df, w.zero + n + i * kLanes), token_step, token_sum, token_center, to);
        }
      };
#if HWY_TARGET_IS_NEON
      add(0, hn::Broadcast<0>(steps), hn::Broadcast<0>(block_sums), hn::Broadcast<0>(centers));
      if constexpr (kTokens > 1) add(1, hn::Broadcast<1>(steps), hn::Broadcast<1>(block_sums), hn::Broadcast<1>(centers));
      if constexpr (kTokens > 2) add(2, hn::Broadcast<2>(steps), hn::Broadcast<2>(block_sums), hn::Broadcast<2>(centers));
      if constexpr (kTokens > 3) add(3, hn::Broadcast<3>(steps), hn::Broadcast<3>(block_sums), hn::Broadcast<3>(centers));
#else
      for (size_t t = 0; t < kTokens; ++t) {
        const float token_sum = sum[t * blocks];
        add(t, hn::Set(df, step[t * blocks]), hn::Set(df, token_sum), hn::Set(df, -center * token_sum));
      }
#endif
    }
  }
}

// Base, scales and zero points of a product's steps, and the outputs that it goes through the blocks with at once: of a copy those of a panel, which lies
// together, else all.
template <bool kChannelMajor, int kBits>
class TilePlaces {
 public:
  TilePlaces(const Nested& w, const TilePart& part) : w_(w), rows_(w, part.first_block, part.end_block, part.begin, part.end), all_(part.end - part.begin) {}

  size_t Width() const { return kChannelMajor ? rows_.Width() : all_; }
  bool FirstLevel() const { return kChannelMajor ? rows_.FirstLevel() : AsksFirstLevel(); }
  BlockPlace At(size_t b, size_t n) const {
    if constexpr (kChannelMajor) return rows_.At(b, n);
    const size_t at = b * w_.N + n;
    return {w_.base + at * 16, w_.scale + at, w_.zero + at, 0};
  }

 private:
  const Nested& w_;
  ChannelRows<kBits> rows_;
  size_t all_;
};

// The steps of a product, which are asked for ahead of time, each in kParts parts: a burst would fill the queue of outstanding lines.
template <bool kChannelMajor, int kBits>
class TilesAhead {
 public:
  TilesAhead(const Nested& w, const TilePlaces<kChannelMajor, kBits>& places, const TilePart& part)
      : w_(w), places_(places), part_(part), first_level_(places.FirstLevel()), block_(part.first_block), begin_(part.begin), n_(part.begin),
        end_(std::min(part.end, part.begin + places.Width())) {
    Place();
    const size_t bytes = (kBits == 3 ? 13 : 19 + 8 * static_cast<size_t>(PlanesAt(kBits))) * width_;
    for (size_t ahead = prefetching.row_bytes.load(std::memory_order_relaxed) / bytes; ahead > 0; --ahead) Step();
  }

  static HWY_INLINE size_t WidthAt(size_t n, size_t end) { return end - n >= kWide ? kWide : kTile; }

  // Asks for a part of the step after those that were asked for before.
  HWY_INLINE void Part() {
    if (asked_ == kParts) return;
    if (first_level_) {
      PartInto(true);
    } else {
      PartInto(false);
    }
    ++asked_;
  }

  // Asks for what is left of the step, and goes on with the next one.
  HWY_INLINE void Step() {
    while (asked_ != kParts) Part();
    n_ += width_;
    if (n_ >= end_) {
      n_ = begin_;
      ++block_;
    }
    if (block_ == part_.end_block && end_ < part_.end) {
      begin_ = n_ = end_;
      end_ = std::min(part_.end, end_ + places_.Width());
      block_ = part_.first_block;
    }
    if (block_ < part_.end_block) Place();
  }

 private:
  static constexpr size_t kParts = 8, kRows = kBlock / kParts;

  HWY_INLINE void Place() {
    const size_t at = block_ * w_.N + n_;
    width_ = WidthAt(n_, end_);
    asked_ = 0;
    if constexpr (kBits == 3) {
      row_bytes_ = w_.N / 4;
      base_ = w_.low + block_ * kBlock * row_bytes_ + n_ / 4;
      high_ = w_.high + (block_ * kBlock * row_bytes_ + n_ / 4) / 2;
      zero_ = w_.block_scale + at;
    } else {
      const BlockPlace place = places_.At(block_, n_);
      row_bytes_ = place.stride;
      base_ = place.base;
      scale_ = reinterpret_cast<const uint8_t*>(place.scale);
      zero_ = place.zero;
      if constexpr (kBits > 4) plane1_ = w_.plane1 + at * 8;
      if constexpr (kBits > 6) plane2_ = w_.plane2 + at * 8;
    }
  }
  HWY_INLINE void PartInto(bool first_level) const {
    if constexpr (kChannelMajor) {
      for (size_t k = 0; k < kRows; ++k) PrefetchLine(base_ + (asked_ * kRows + k) * row_bytes_, first_level);
      if constexpr (kBits == 3) {
        for (size_t k = 0; k < kRows; ++k) PrefetchLine(high_ + (asked_ * kRows + k) * row_bytes_ / 2, first_level);
      }
    } else {
      for (size_t i = 0; i < width_ / kTile * 2; ++i) PrefetchLine(base_ + (asked_ * (width_ / kTile * 2) + i) * 64, first_level);
    }
    if (asked_ < width_ / 64) PrefetchLine(zero_ + asked_ * 64, first_level);
    if constexpr (kBits > 3) {
      if (asked_ < width_ / 32) PrefetchLine(scale_ + asked_ * 64, first_level);
    }
    for (size_t i = 0; kBits > 4 && i < width_; i += 64) PrefetchLine(plane1_ + asked_ * width_ + i, first_level);
    for (size_t i = 0; kBits > 6 && i < width_; i += 64) PrefetchLine(plane2_ + asked_ * width_ + i, first_level);
  }

  const Nested& w_;
  const TilePlaces<kChannelMajor, kBits>& places_;
  const TilePart& part_;
  const bool first_level_;
  size_t block_, begin_, n_, end_;  // where it is, between outputs that the blocks are gone through with
  size_t row_bytes_ = 0;            // of the base, or of `low`
  size_t width_ = 0, asked_ = 0;
  const uint8_t *base_ = nullptr, *high_ = nullptr, *scale_ = nullptr, *zero_ = nullptr, *plane1_ = nullptr, *plane2_ = nullptr;
};

// One block of a tile.
template <bool kChannelMajor, int kBits>
HWY_INLINE void Merge(const Nested& w, const TilePlaces<kChannelMajor, kBits>& places, size_t b, size_t n, size_t width,
                      TilesAhead<kChannelMajor, kBits>& ahead, Merged& merged) {
  if constexpr (kBits == 3) {
    DecodeCodebook(w, b, n, width, 0x80 ^ static_cast<uint8_t>(kFlip), merged.quads, merged.scale);
  } else {
    const TileView view(w, places.At(b, n), kChannelMajor, b, n, width);
    if constexpr (kChannelMajor) {
      const auto ask = [&](size_t quad) HWY_ATTR __attribute__((always_inline)) {
        if (quad % 2 == 0) ahead.Part();
      };
      MergeChannelMajor<kBits>(view, width, ask, merged);
    } else {
      MergeBlockMajor(view, width, merged);
    }
    MergeScales(view, width, merged);
  }
#if SOL_ARM_I8MM
  JoinQuads(width, merged);
#endif
}

template <bool kChannelMajor, int kBits>
HWY_INLINE void Tiles(const Nested& w, const Activations& x, size_t first, size_t tokens, const TilePart& part, float* y, size_t stride) {
  constexpr size_t kHalves = HalvesAt(kBits);
  const size_t blocks = w.K / kBlock;
  const int8_t* codes = (kChannelMajor ? x.phased : x.even_odd) + first * kHalves * w.K;
  const TilePlaces<kChannelMajor, kBits> places(w, part);
  TilesAhead<kChannelMajor, kBits> ahead(w, places, part);
  Merged merged;
  const auto block = [&](size_t b, size_t begin, size_t end) HWY_ATTR __attribute__((always_inline)) {
    for (size_t n = begin, width; n < end; n += width) {
      width = ahead.WidthAt(n, end);
      Merge<kChannelMajor, kBits>(w, places, b, n, width, ahead, merged);
      const auto run = [&](auto count, size_t t) HWY_ATTR {
        ahead.Part();
        TileBlock<decltype(count)::value, kBits>(merged, width, codes + t * kHalves * w.K + b * kBlock, w.K, x.step + (first + t) * blocks + b,
                                                 x.sum + (first + t) * blocks + b, blocks, w.Center(), y + t * stride + n - part.begin, stride);
      };
      size_t t = 0;
      constexpr size_t kGroup = kTokensAtATime<kBits>;
      for (; t + kGroup <= tokens; t += kGroup) run(std::integral_constant<size_t, kGroup>(), t);
      if (kGroup > 2 && t + 2 <= tokens) {
        run(std::integral_constant<size_t, 2>(), t);
        t += 2;
      }
      for (; t < tokens; ++t) run(std::integral_constant<size_t, 1>(), t);
      ahead.Step();
    }
  };
  for (size_t begin = part.begin, end; begin < part.end; begin = end) {
    end = std::min(part.end, begin + places.Width());
    for (size_t b = part.first_block; b < part.end_block; ++b) block(b, begin, end);
  }
  if constexpr (kBits == 3) {
    for (size_t t = 0; t < tokens; ++t) ScaleOutputs(w, part.begin, std::min(part.end, w.N) - part.begin, y + t * stride);
  }
}

inline void TileBlockMajor(const Nested& w, const Activations& x, size_t first, size_t tokens, const TilePart& part, float* y, size_t stride) {
  if (w.bits == 4) return Tiles<false, 4>(w, x, first, tokens, part, y, stride);
  if (w.bits == 6) return Tiles<false, 6>(w, x, first, tokens, part, y, stride);
  Tiles<false, 8>(w, x, first, tokens, part, y, stride);
}

inline void TileChannelMajor(const Nested& w, const Activations& x, size_t first, size_t tokens, const TilePart& part, float* y, size_t stride) {
  if (w.bits == 3) return Tiles<true, 3>(w, x, first, tokens, part, y, stride);
  if (w.bits == 4) return Tiles<true, 4>(w, x, first, tokens, part, y, stride);
  if (w.bits == 6) return Tiles<true, 6>(w, x, first, tokens, part, y, stride);
  Tiles<true, 8>(w, x, first, tokens, part, y, stride);
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_TILE_INL_H_
