// Many tokens times 64 outputs of a matrix: sums [tokens, 64] = x [tokens, K] W[:, n … n + 63].
//
// The formula is that of row-inl.h. Of each block of 32 channels the planes of the 64 outputs are merged to bytes 16 q + 4 b + c once, in
// the first-level cache, and every token of the tile is multiplied by these bytes:
//
//   quads [8, 64]    32-bit words: four channels of one output, a byte each. Quad i of a block-major matrix holds four channels in the
//                    order `even_odd`, of a channel-major one in the order `phased`; the tokens' codes lie in the same order.
//   scale, zero [64] float32, the zero point with the level's center
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

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Bits that are flipped in a code's byte: Arm without i8mm multiplies signed bytes only, so there it holds the code less 128. Sums then start with
// 128 times the sum of the activations' codes.
constexpr uint32_t kFlip = HWY_TARGET_IS_NEON && !SOL_ARM_I8MM ? 0x80808080u : 0;

// One block of a tile: quads of four channels whose bytes are 16 q + 4 b + c.
struct Merged {
  HWY_ALIGN uint32_t quads[kBlock / 4][kTile];
#if SOL_ARM_I8MM
  HWY_ALIGN uint32_t octets[kBlock / 8][2 * kTile];  // eight channels of an output side by side: two quads
#endif
  HWY_ALIGN float scale[kTile];
  HWY_ALIGN float zero[kTile];  // with the level's center, in terms of the bytes
};

// A tile's part of one block, with all 64 outputs readable.
class TileView {
 public:
  TileView(const Nested& w, bool channel_major, size_t b, size_t n) {
    const size_t at = b * w.N + n, left = std::min(kTile, w.N - n);
    scale = w.scale + at;
    zero = w.zero + at;
    plane1 = w.bits > 4 ? w.plane1 + at * 8 : nullptr;
    plane2 = w.bits > 6 ? w.plane2 + at * 8 : nullptr;
    stride = w.N / 2;
    base = channel_major ? w.base + b * kBlock * stride + n / 2 : w.base + at * 16;
    if (left == kTile) return;

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
      for (size_t k = 0; k < kBlock; ++k) std::memcpy(base_ + k * kTile / 2, base + k * stride, left / 2);
      stride = kTile / 2;
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
  uint8_t base_[kTile * 16];
  uint16_t scale_[kTile];
  uint8_t zero_[kTile];
  uint8_t plane1_[kTile * 8];
  uint8_t plane2_[kTile * 8];
};

HWY_INLINE void MergeScales(const Nested& w, const TileView& v, Merged& out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  const hn::Rebind<uint8_t, decltype(df)> d8;
  const auto center = hn::Set(df, w.Center());
  for (size_t i = 0; i < kTile; i += hn::MaxLanes(df)) {
    hn::Store(hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, v.scale + i))), df, out.scale + i);
    const auto zero = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, v.zero + i)));
    hn::Store(hn::Add(zero, center), df, out.zero + i);
  }
}

// Quads in the order `even_odd`.
HWY_INLINE void MergeBlockMajor(const Nested& w, const TileView& v, Merged& out) {
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

  for (size_t n = 0; n < kTile; n += kOutputs) {
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
  MergeScales(w, v, out);
}

// Quads in the order `phased`: quad 2 f + j holds channels 16 j + f, + 4, + 8, + 12.
HWY_INLINE void MergeChannelMajor(const Nested& w, const TileView& v, Merged& out) {
  const hn::CappedTag<uint8_t, kTile / 2> d8;
  using D8 = decltype(d8);
  const hn::Repartition<uint16_t, D8> d16;
  const hn::Repartition<uint32_t, D8> d32;
  using V32 = hn::Vec<decltype(d32)>;
  constexpr size_t kBytes = hn::MaxLanes(d8), kOutputs = hn::MaxLanes(d32);
  for (size_t n = 0; n < kTile; n += 2 * kBytes) {
    for (size_t quad = 0; quad < kBlock / 4; ++quad) {
      const size_t first = quad % 2 * 16 + quad / 2;
      const uint8_t* from = v.base + first * v.stride + n / 2;
      hn::Vec<D8> q[4];
      InterleaveRows(d8, hn::LoadU(d8, from), hn::LoadU(d8, from + 4 * v.stride), hn::LoadU(d8, from + 8 * v.stride),
                     hn::LoadU(d8, from + 12 * v.stride), q[0], q[1], q[2], q[3]);
      V32 even[4], odd[4], ordered[8];
      for (size_t i = 0; i < 4; ++i) {
        const auto packed = hn::BitCast(d16, q[i]);
        even[i] = hn::BitCast(d32, hn::And(hn::ShiftLeft<4>(packed), hn::Set(d16, 0xF0F0)));
        odd[i] = hn::BitCast(d32, hn::And(packed, hn::Set(d16, 0xF0F0)));
      }
      OrderOutputs(d32, even, odd, ordered);
      for (size_t i = 0; i < 8; ++i) {
        hn::Store(hn::Xor(ordered[i], hn::Set(d32, kFlip)), d32, out.quads[quad] + n + i * kOutputs);
      }
    }
  }
  const auto merge_plane = [&](const uint8_t* plane, int weight_shift) HWY_ATTR {
    const auto mask = hn::Set(d8, static_cast<uint8_t>(3 << weight_shift));
    for (size_t n = 0; n < kTile; n += kOutputs) {
      const V32 a = hn::BitCast(d32, hn::LoadU(d8, plane + n * 8));
      const V32 c = hn::BitCast(d32, hn::LoadU(d8, plane + n * 8 + kBytes));
      const V32 halves[2] = {hn::ConcatEven(d32, c, a), hn::ConcatOdd(d32, c, a)};
      for (size_t quad = 0; quad < kBlock / 4; ++quad) {
        const int field = static_cast<int>(quad / 2) * 2;
        const V32 half = halves[quad % 2];
        const V32 moved = field >= weight_shift ? hn::ShiftRightSame(half, field - weight_shift)
                                                : hn::ShiftLeftSame(half, weight_shift - field);
        uint32_t* to = out.quads[quad] + n;
        hn::Store(hn::OrAnd(hn::Load(d32, to), moved, hn::BitCast(d32, mask)), d32, to);
      }
    }
  };
  if (v.plane1 != nullptr) merge_plane(v.plane1, 2);
  if (v.plane2 != nullptr) merge_plane(v.plane2, 0);
  MergeScales(w, v, out);
}

#if SOL_ARM_I8MM
HWY_INLINE void JoinQuads(Merged& m) {
  for (size_t i = 0; i < kBlock / 8; ++i) {
    for (size_t n = 0; n < kTile; n += 4) {
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

// sums[t][0 … 63] += one block, for kTokens tokens, whose halves lie K codes apart.
template <size_t kTokens, int kBits>
HWY_INLINE void TileBlock(const Merged& w, const int8_t* x, size_t K, const float* step, const float* sum, size_t blocks,
                          float* sums) {
  const hn::ScalableTag<int32_t> di;
  using DI = decltype(di);
  const hn::Rebind<float, DI> df;
  constexpr size_t kLanes = hn::MaxLanes(di);
  // As many sums as the registers hold; level 6 has two for each where bytes are multiplied in pairs.
  constexpr size_t kVectors = (kLanes >= 16 ? 4 : 2) / (SOL_BYTE_PAIRS && kBits == 6 ? 2 : 1);
  const BlockProducts<kBits, kTokens, kVectors, DI> products(x, K);
#if HWY_TARGET_IS_NEON
  // A lane a token: Arm multiplies by one lane.
  static_assert(kTokens <= 4, "lanes");
  HWY_ALIGN float step_lanes[4] = {}, sum_lanes[4] = {};
  for (size_t t = 0; t < kTokens; ++t) {
    step_lanes[t] = step[t * blocks];
    sum_lanes[t] = sum[t * blocks];
  }
  const auto steps = hn::Load(df, step_lanes), block_sums = hn::Load(df, sum_lanes);
#endif
  for (size_t n = 0; n < kTile; n += kVectors * kLanes) {
    hn::Vec<DI> totals[kTokens][kVectors];
    products.Multiply(w, n, totals);
    for (size_t i = 0; i < kVectors; ++i) {
      const auto scale = hn::Load(df, w.scale + n + i * kLanes);
      const auto zero = hn::Load(df, w.zero + n + i * kLanes);
      const auto add = [&](size_t t, auto token_step, auto token_sum) HWY_ATTR __attribute__((always_inline)) {
        float* to = sums + t * kTile + n + i * kLanes;
        auto value = hn::Mul(hn::ConvertTo(df, totals[t][i]), token_step);
        value = hn::NegMulAdd(zero, token_sum, value);
        hn::Store(hn::MulAdd(scale, value, hn::Load(df, to)), df, to);
      };
#if HWY_TARGET_IS_NEON
      add(0, hn::Broadcast<0>(steps), hn::Broadcast<0>(block_sums));
      if constexpr (kTokens > 1) add(1, hn::Broadcast<1>(steps), hn::Broadcast<1>(block_sums));
      if constexpr (kTokens > 2) add(2, hn::Broadcast<2>(steps), hn::Broadcast<2>(block_sums));
      if constexpr (kTokens > 3) add(3, hn::Broadcast<3>(steps), hn::Broadcast<3>(block_sums));
#else
      for (size_t t = 0; t < kTokens; ++t) add(t, hn::Set(df, step[t * blocks]), hn::Set(df, sum[t * blocks]));
#endif
    }
  }
}

// Asks for a tile's part of one block.
HWY_INLINE void PrefetchTile(const Nested& w, bool channel_major, size_t b, size_t n) {
  const size_t at = b * w.N + n;
  const auto lines = [](const void* from, size_t bytes) HWY_ATTR {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i);
  };
  if (w.bits == 3) {
    for (size_t k = b * kBlock; k < (b + 1) * kBlock; ++k) {
      __builtin_prefetch(w.low + k * (w.N / 4) + n / 4);
      __builtin_prefetch(w.high + k * (w.N / 8) + n / 8);
    }
    return lines(w.block_scale + at, kTile);
  }
  if (channel_major) {
    for (size_t k = 0; k < kBlock; ++k) __builtin_prefetch(w.base + (b * kBlock + k) * (w.N / 2) + n / 2);
  } else {
    lines(w.base + at * 16, kTile * 16);
  }
  lines(w.scale + at, kTile * sizeof(uint16_t));
  lines(w.zero + at, kTile);
  if (w.plane1 != nullptr) lines(w.plane1 + at * 8, kTile * 8);
  if (w.plane2 != nullptr) lines(w.plane2 + at * 8, kTile * 8);
}

template <bool kChannelMajor>
HWY_INLINE void Merge(const Nested& w, size_t b, size_t n, Merged& merged) {
  const TileView view(w, kChannelMajor, b, n);
  if (kChannelMajor) {
    MergeChannelMajor(w, view, merged);
  } else {
    MergeBlockMajor(w, view, merged);
  }
}

template <bool kChannelMajor, int kBits>
HWY_INLINE void Tile(const Nested& w, const Activations& x, size_t first, size_t tokens, size_t n, float* sums) {
  constexpr size_t kHalves = HalvesAt(kBits);
  const size_t blocks = w.K / kBlock;
  const int8_t* codes = (kChannelMajor ? x.phased : x.even_odd) + first * kHalves * w.K;
  std::fill(sums, sums + tokens * kTile, 0.0f);
  Merged merged;
  for (size_t b = 0; b < blocks; ++b) {
    if (b + 1 < blocks) PrefetchTile(w, kChannelMajor, b + 1, n);
    if (kChannelMajor && kBits == 6 && w.bits == 3) {
      DecodeCodebook(w, b, n, 0x80 ^ static_cast<uint8_t>(kFlip), merged.quads, merged.scale, merged.zero);
    } else {
      Merge<kChannelMajor>(w, b, n, merged);
    }
#if SOL_ARM_I8MM
    JoinQuads(merged);
#endif
    const auto run = [&](auto count, size_t t) HWY_ATTR {
      TileBlock<decltype(count)::value, kBits>(merged, codes + t * kHalves * w.K + b * kBlock, w.K,
                                               x.step + (first + t) * blocks + b, x.sum + (first + t) * blocks + b,
                                               blocks, sums + t * kTile);
    };
    size_t t = 0;
    constexpr size_t kGroup = kTokensAtATime<kBits>;
    for (; t + kGroup <= tokens; t += kGroup) run(std::integral_constant<size_t, kGroup>(), t);
    for (; t < tokens; ++t) run(std::integral_constant<size_t, 1>(), t);
  }
}

inline void TileBlockMajor(const Nested& w, const Activations& x, size_t first, size_t tokens, size_t n, float* sums) {
  if (w.bits == 4) return Tile<false, 4>(w, x, first, tokens, n, sums);
  if (w.bits == 6) return Tile<false, 6>(w, x, first, tokens, n, sums);
  Tile<false, 8>(w, x, first, tokens, n, sums);
}

inline void TileChannelMajor(const Nested& w, const Activations& x, size_t first, size_t tokens, size_t n, float* sums) {
  if (w.bits == 4) return Tile<true, 4>(w, x, first, tokens, n, sums);
  if (w.bits == 6 || w.bits == 3) return Tile<true, 6>(w, x, first, tokens, n, sums);  // either has bytes of 8 bits and one half
  Tile<true, 8>(w, x, first, tokens, n, sums);
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_TILE_INL_H_
