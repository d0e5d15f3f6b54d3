// Dot products of weight codes with activation codes, exact in int32, and the orders in which vectors hold them.
//
//   DotNibbles    sum[i] += codes[4i … 4i+3] . x[4i … 4i+3]    a 32-bit lane is the sum of four products of bytes
//   BlockSum      the same over the 32 channels of a block, for codes up to 15 and activations in one half or two: 254 x1 + x2
//   Residual      sum over a block's channels of (4 b + c) C, from the planes [N, 8] of two bits a channel
//   BlockScale    y += s (a/16 (sums - center sum C) - z a/16 sum C)    what makes floats of a block's integer sums
//   SumFours, SumTwos, OrderOutputs    from lanes in the order of the products to one output a lane, in order
//
// Codes are unsigned bytes, up to 15 here, and activations signed ones, from -127 to 127. Where a processor has no dot product of four
// bytes (SOL_BYTE_PAIRS), pairs are added to 16 bits first; the bounds of every such sum stand beside it.

#if defined(SOL_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_DOT_INL_H_
#undef SOL_DOT_INL_H_
#else
#define SOL_DOT_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/simd/arm_features-inl.h"
#include "cpu/simd/x86_features.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

#if HWY_TARGET_IS_NEON
// sum[i] += codes[4i … 4i+3] . x[4i … 4i+3], x from -127 to 127. Highway has no such instruction on Arm.
HWY_INLINE hn::Vec128<int32_t> DotSigned(hn::Vec128<int8_t> codes, hn::Vec128<int8_t> x, hn::Vec128<int32_t> sum) {
#if SOL_ARM_DOT
  return hn::Vec128<int32_t>(vdotq_s32(sum.raw, codes.raw, x.raw));
#else
  const int16x8_t low = vmull_s8(vget_low_s8(codes.raw), vget_low_s8(x.raw));
  const int16x8_t high = vmull_s8(vget_high_s8(codes.raw), vget_high_s8(x.raw));
  return hn::Vec128<int32_t>(vpadalq_s16(sum.raw, vpaddq_s16(low, high)));  // 2 * 128 * 127 fits
#endif
}
#endif

// sum[i] += codes[4i … 4i+3] . x[4i … 4i+3], for any codes and x.
template <class DI, class VI = hn::Vec<DI>, class VU = hn::Vec<hn::Repartition<uint8_t, DI>>, class VX = hn::Vec<hn::Repartition<int8_t, DI>>>
HWY_INLINE VI DotBytes([[maybe_unused]] DI di, VU codes, VX x, VI sum) {
#if SOL_AVX_VNNI
  __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(sum.raw) : "x"(codes.raw), "x"(x.raw));
  return sum;
#else
  return hn::SumOfMulQuadAccumulate(di, codes, x, sum);
#endif
}

// The sums of both halves of the activations as one.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE VI JoinHalves(DI di, VI coarse, VI fine) {
  return hn::Add(hn::Mul(coarse, hn::Set(di, kHalfStep)), fine);
}

// The same for lanes of `coarse` that fit in 16 bits.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE VI JoinShortHalves(DI di, VI coarse, VI fine) {
#if SOL_AVX_VNNI
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(fine.raw) : "x"(coarse.raw), "x"(hn::Set(di, kHalfStep).raw));
  return fine;
#elif HWY_TARGET <= HWY_AVX3_DL
  const hn::Repartition<int16_t, DI> d16;
  VI unused = hn::Zero(di);
  return hn::ReorderWidenMulAccumulate(di, hn::BitCast(d16, coarse), hn::BitCast(d16, hn::Set(di, kHalfStep)), fine, unused);
#else
  return JoinHalves(di, coarse, fine);
#endif
}

// sum[i] += codes[4i … 4i+3] . x[4i … 4i+3] for codes up to 15.
template <class DI, class VI = hn::Vec<DI>, class VU = hn::Vec<hn::Repartition<uint8_t, DI>>,
          class VX = hn::Vec<hn::Repartition<int8_t, DI>>>
HWY_INLINE VI DotNibbles([[maybe_unused]] DI di, VU codes, VX x, VI sum) {
#if SOL_BYTE_PAIRS
  const hn::Repartition<int16_t, DI> d16;  // 2 * 15 * 127 fits
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di, hn::SatWidenMulPairwiseAdd(d16, codes, x), hn::Set(d16, 1)));
#elif SOL_BYTE_DOT
  return DotBytes(di, codes, x, sum);
#elif HWY_TARGET_IS_NEON
  return DotSigned(hn::BitCast(hn::Repartition<int8_t, DI>(), codes), x, sum);
#else
  return hn::SumOfMulQuadAccumulate(di, hn::BitCast(hn::Repartition<int8_t, DI>(), codes), x, sum);
#endif
}

// 1 if BlockSum adds whole bytes, which saves taking them apart.
#define SOL_ADDS_BYTES (SOL_ARM_I8MM || SOL_BYTE_DOT)

// Sums over the at most eight quads of a block of codes up to 15 times activations of kHalves halves, x[h] being four channels' half h in
// every lane.
template <class DI, size_t kHalves>
class BlockSum {
 public:
  using VI = hn::Vec<DI>;
  using VU = hn::Vec<hn::Repartition<uint8_t, DI>>;
  using VX = hn::Vec<hn::Repartition<int8_t, DI>>;

#if SOL_BYTE_PAIRS
  using DSum = hn::Repartition<int16_t, DI>;  // 8 * 2 * 15 * 127 fits
#else
  using DSum = DI;
#endif

  HWY_INLINE BlockSum() {
    for (auto& sum : sums_) sum = hn::Zero(DSum());
  }

  HWY_INLINE void Add(VU codes, const VX (&x)[kHalves]) {
    for (size_t h = 0; h < kHalves; ++h) {
#if SOL_BYTE_PAIRS
      sums_[h] = hn::Add(sums_[h], hn::SatWidenMulPairwiseAdd(DSum(), codes, x[h]));
#else
      sums_[h] = DotNibbles(DI(), codes, x[h], sums_[h]);
#endif
    }
  }

#if SOL_ADDS_BYTES
  // Of codes of up to 255. Not to be mixed with what ShortTotal needs.
  HWY_INLINE void AddBytes(VU codes, const VX (&x)[kHalves]) {
    for (size_t h = 0; h < kHalves; ++h) {
#if SOL_ARM_I8MM
      sums_[h] = VI(vusdotq_s32(sums_[h].raw, codes.raw, x[h].raw));
#else
      sums_[h] = DotBytes(DI(), codes, x[h], sums_[h]);
#endif
    }
  }
#endif

  HWY_INLINE VI Total() const { return Join([](DI di, VI coarse, VI fine) HWY_ATTR { return JoinHalves(di, coarse, fine); }); }

  // After at most four calls of Add, whose 16 products a lane fit in 16 bits.
  HWY_INLINE VI ShortTotal() const { return Join([](DI di, VI coarse, VI fine) HWY_ATTR { return JoinShortHalves(di, coarse, fine); }); }

 private:
  template <class F>
  HWY_INLINE VI Join(const F& join) const {
#if SOL_BYTE_PAIRS
    (void)join;
    const VI last = hn::WidenMulPairwiseAdd(DI(), sums_[kHalves - 1], hn::Set(DSum(), 1));
    if constexpr (kHalves == 1) return last;
    return hn::Add(last, hn::WidenMulPairwiseAdd(DI(), sums_[0], hn::Set(DSum(), kHalfStep)));
#else
    if constexpr (kHalves == 1) return sums_[0];
    return join(DI(), sums_[0], sums_[kHalves - 1]);
#endif
  }

  hn::Vec<DSum> sums_[kHalves];
};

// From four vectors with four lanes an output to one vector of outputs in order.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE VI SumFours([[maybe_unused]] DI di, VI v0, VI v1, VI v2, VI v3) {
#if HWY_TARGET_IS_NEON
  return VI(vpaddq_s32(vpaddq_s32(v0.raw, v1.raw), vpaddq_s32(v2.raw, v3.raw)));
#else
  const hn::Repartition<int64_t, DI> d64;
  constexpr size_t kBlocks = hn::MaxLanes(di) / 4;
  const VI t01 = hn::Add(hn::InterleaveLower(di, v0, v1), hn::InterleaveUpper(di, v0, v1));
  const VI t23 = hn::Add(hn::InterleaveLower(di, v2, v3), hn::InterleaveUpper(di, v2, v3));
  const auto u01 = hn::BitCast(d64, t01), u23 = hn::BitCast(d64, t23);
  const VI sums = hn::Add(hn::BitCast(di, hn::InterleaveLower(d64, u01, u23)),
                          hn::BitCast(di, hn::InterleaveUpper(d64, u01, u23)));
  if constexpr (kBlocks == 1) {
    return sums;
  } else {
    // Lane v of 128-bit block b is output kBlocks * v + b.
    HWY_ALIGN int32_t order[hn::MaxLanes(di)];
    for (size_t o = 0; o < 4 * kBlocks; ++o) order[o] = static_cast<int32_t>(o % kBlocks * 4 + o / kBlocks);
    return hn::TableLookupLanes(sums, hn::SetTableIndices(di, order));
  }
#endif
}

// From two vectors with two lanes an output to one vector of outputs in order.
template <class DI, class VI = hn::Vec<DI>>
HWY_INLINE VI SumTwos([[maybe_unused]] DI di, VI v0, VI v1) {
#if HWY_TARGET_IS_NEON
  return VI(vpaddq_s32(v0.raw, v1.raw));
#else
  return hn::Add(hn::ConcatEven(di, v1, v0), hn::ConcatOdd(di, v1, v0));
#endif
}

// Four rows of packed bytes -> four vectors whose 32-bit lanes hold one byte of each row: lane i of 128-bit block b of
// quads[m] holds byte 16 b + 4 m + i.
template <class D8, class V8 = hn::Vec<D8>>
HWY_INLINE void InterleaveRows(D8 d8, V8 r0, V8 r1, V8 r2, V8 r3, V8& q0, V8& q1, V8& q2, V8& q3) {
  const hn::Repartition<uint16_t, D8> d16;
  const auto low01 = hn::BitCast(d16, hn::InterleaveLower(d8, r0, r1));
  const auto high01 = hn::BitCast(d16, hn::InterleaveUpper(d8, r0, r1));
  const auto low23 = hn::BitCast(d16, hn::InterleaveLower(d8, r2, r3));
  const auto high23 = hn::BitCast(d16, hn::InterleaveUpper(d8, r2, r3));
  q0 = hn::BitCast(d8, hn::InterleaveLower(d16, low01, low23));
  q1 = hn::BitCast(d8, hn::InterleaveUpper(d16, low01, low23));
  q2 = hn::BitCast(d8, hn::InterleaveLower(d16, high01, high23));
  q3 = hn::BitCast(d8, hn::InterleaveUpper(d16, high01, high23));
}

// The 4 x 4 transpose of 128-bit blocks.
template <class D32, class V = hn::Vec<D32>>
HWY_INLINE void TransposeBlocks(D32 d, V a, V b, V c, V e, V& out0, V& out1, V& out2, V& out3) {
  static_assert(hn::MaxLanes(D32()) == 16, "vectors of four blocks");
  using T = hn::TFromD<D32>;
  HWY_ALIGN static constexpr T kEven[16] = {0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27};
  HWY_ALIGN static constexpr T kOdd[16] = {4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30, 31};
  const auto even = hn::SetTableIndices(d, kEven), odd = hn::SetTableIndices(d, kOdd);
  const V ac01 = hn::ConcatLowerLower(d, c, a), be01 = hn::ConcatLowerLower(d, e, b);
  const V ac23 = hn::ConcatUpperUpper(d, c, a), be23 = hn::ConcatUpperUpper(d, e, b);
  out0 = hn::TwoTablesLookupLanes(d, ac01, be01, even);
  out1 = hn::TwoTablesLookupLanes(d, ac01, be01, odd);
  out2 = hn::TwoTablesLookupLanes(d, ac23, be23, even);
  out3 = hn::TwoTablesLookupLanes(d, ac23, be23, odd);
}

// Undoes InterleaveRows: `low` and `high` hold a result for the low nibble (even output) and the high nibble (odd output)
// of every lane; out[p] holds outputs p * lanes … in order.
template <class D32, class V = hn::Vec<D32>>
HWY_INLINE void OrderOutputs(D32 d, const V (&low)[4], const V (&high)[4], V (&out)[8]) {
  constexpr size_t kBlocks = hn::MaxLanes(d) / 4;
  V fours[8];  // block b of fours[i] holds outputs 32 b + 4 i …
  for (size_t m = 0; m < 4; ++m) {
    fours[2 * m] = hn::InterleaveLower(d, low[m], high[m]);
    fours[2 * m + 1] = hn::InterleaveUpper(d, low[m], high[m]);
  }
  if constexpr (kBlocks == 1) {
    for (size_t p = 0; p < 8; ++p) out[p] = fours[p];
  } else if constexpr (kBlocks == 2) {
    for (size_t i = 0; i < 4; ++i) {
      out[i] = hn::ConcatLowerLower(d, fours[2 * i + 1], fours[2 * i]);
      out[4 + i] = hn::ConcatUpperUpper(d, fours[2 * i + 1], fours[2 * i]);
    }
  } else {
    TransposeBlocks(d, fours[0], fours[1], fours[2], fours[3], out[0], out[2], out[4], out[6]);
    TransposeBlocks(d, fours[4], fours[5], fours[6], fours[7], out[1], out[3], out[5], out[7]);
  }
}

// Bits of a byte of PlaneFields that are the field's own.
template <int kBits>
constexpr uint8_t kPlaneField = kBits == 8 ? 0x0F : 0x0C;

// 4 b + c of the four channels that a byte of the planes holds, in the bits kPlaneField; the others are to be left out. Shifts are of two bytes.
template <int kBits, class V>
HWY_INLINE void PlaneFields(V b, [[maybe_unused]] V c, V (&fields)[4]) {
  const hn::DFromV<V> d8;
  const hn::Repartition<uint16_t, decltype(d8)> d16;
  const auto left = [&](V v) HWY_ATTR { return hn::BitCast(d8, hn::ShiftLeft<2>(hn::BitCast(d16, v))); };
  const auto right = [&](V v) HWY_ATTR { return hn::BitCast(d8, hn::ShiftRight<2>(hn::BitCast(d16, v))); };
  if constexpr (kBits == 8) {
    // Bits of both planes in one byte: two even fields, a nibble each, and the same of odd fields.
    const V b_places = hn::Set(d8, uint8_t{0xCC});
    fields[0] = hn::BitwiseIfThenElse(b_places, left(b), c);
    fields[1] = hn::BitwiseIfThenElse(b_places, b, right(c));
    for (size_t i = 0; i < 2; ++i) fields[2 + i] = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, fields[i])));
  } else {
    fields[0] = left(b);
    fields[1] = b;
    fields[2] = right(b);
    fields[3] = hn::BitCast(d8, hn::ShiftRight<4>(hn::BitCast(d16, b)));
  }
}

// The codes of the residual planes of one block, against the whole block of activations.
template <int kBits, class D8>
class Residual {
 public:
  using DI = hn::Repartition<int32_t, D8>;
  using DX = hn::Repartition<int8_t, D8>;
  static constexpr size_t kHalves = HalvesAt(kBits);
  static constexpr size_t kChains = 2 / kHalves;  // sums at a time that wait for no other: two halves are two already

  // Halves of the activations lie `stride` codes apart.
  HWY_INLINE Residual(const int8_t* phased, size_t stride) {
    const hn::Repartition<uint64_t, D8> d64;
    if (kBits == 4) return;  // no residual
    for (size_t h = 0; h < kHalves; ++h) {
      uint64_t words[4];
      std::memcpy(words, phased + h * stride, sizeof(words));
      for (size_t f = 0; f < 4; ++f) x_[f][h] = hn::BitCast(DX(), hn::Set(d64, words[f]));
    }
  }

  // Sums of (4 b + c) x for a vector of outputs in order.
  HWY_INLINE hn::Vec<DI> Dot(const uint8_t* plane1, const uint8_t* plane2) const {
    constexpr size_t kBytes = hn::MaxLanes(D8());
    const auto v0 = Half(plane1, plane2);
    const auto v1 = Half(plane1 + kBytes, plane2 + kBytes);
    return SumTwos(DI(), v0, v1);
  }

 private:
  HWY_INLINE hn::Vec<DI> Half(const uint8_t* plane1, const uint8_t* plane2) const {
    const D8 d8;
    hn::Vec<D8> fields[4];
    PlaneFields<kBits>(hn::LoadU(d8, plane1), kBits == 8 ? hn::LoadU(d8, plane2) : hn::Zero(d8), fields);
    for (auto& field : fields) field = hn::And(field, hn::Set(d8, kPlaneField<kBits>));
    return Sums(fields[0], fields[1], fields[2], fields[3]);
  }

  HWY_INLINE hn::Vec<DI> Sums(hn::Vec<D8> f0, hn::Vec<D8> f1, hn::Vec<D8> f2, hn::Vec<D8> f3) const {
    BlockSum<DI, kHalves> sum[kChains];
    sum[0].Add(f0, x_[0]);
    sum[kChains - 1].Add(f1, x_[1]);
    sum[0].Add(f2, x_[2]);
    sum[kChains - 1].Add(f3, x_[3]);
    const auto total = sum[0].ShortTotal();
    if constexpr (kChains == 1) return total;
    return hn::Add(total, sum[1 % kChains].ShortTotal());
  }

  hn::Vec<DX> x_[4][kHalves];
};

// Adds one block's integer sums to the outputs: y += s (a/16 (sums - center sum(x)) - z a/16 sum(x)). kUnit: the steps of 1/16 of the scale that
// the sums come in; of the base alone they are 16.
template <class DI, int kBits, int kUnit = kBits == 4 ? 16 : 1>
class BlockScale {
 public:
  using DF = hn::Rebind<float, DI>;
  using VF = hn::Vec<DF>;

  HWY_INLINE BlockScale(float step, float sum, float center)
      : step_(hn::Set(DF(), step * kUnit)), sum_(hn::Set(DF(), sum)), center_(hn::Set(DF(), -center * sum)) {}

  HWY_INLINE void Add(hn::Vec<DI> sums, const uint16_t* scale, const uint8_t* zero, float* y) const {
    const DF df;
    const DI di;
    const hn::Rebind<uint16_t, DF> d16;
    const hn::Rebind<hwy::float16_t, DF> dh;
    const hn::Rebind<uint8_t, DF> d8;
    const auto s = hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, scale)));
    const auto z = hn::ConvertTo(df, hn::PromoteTo(di, hn::LoadU(d8, zero)));
    Add(sums, s, z, y);
  }

#if HWY_TARGET_IS_NEON
  // The same for four vectors of sums: scales and zero points are read in whole vectors.
  HWY_INLINE void AddFour(const hn::Vec<DI>* sums, const uint16_t* scale, const uint8_t* zero, float* y) const {
    const uint8x16_t z8 = vld1q_u8(zero);
    for (size_t i = 0; i < 2; ++i) {
      const float16x8_t s = vreinterpretq_f16_u16(vld1q_u16(scale + 8 * i));
      const uint16x8_t z = i == 0 ? vmovl_u8(vget_low_u8(z8)) : vmovl_high_u8(z8);
      Add(sums[2 * i], VF(vcvt_f32_f16(vget_low_f16(s))), VF(vcvtq_f32_u32(vmovl_u16(vget_low_u16(z)))), y + 8 * i);
      Add(sums[2 * i + 1], VF(vcvt_high_f32_f16(s)), VF(vcvtq_f32_u32(vmovl_high_u16(z))), y + 8 * i + 4);
    }
  }
#endif

  HWY_INLINE void Add(hn::Vec<DI> sums, VF s, VF z, float* y) const { Add(sums, s, z, step_, sum_, center_, y); }

  // The same with vectors in the place of the object's.
  static HWY_INLINE void Add(hn::Vec<DI> sums, VF s, VF z, VF step, VF sum, VF center, float* y) {
    const DF df;
    VF value = hn::ConvertTo(df, sums);
    // Without a center the sum that is added is zero: Arm would copy a register to add to.
    value = kBits == 4 && HWY_TARGET_IS_NEON ? hn::Mul(value, step) : hn::MulAdd(value, step, center);
    value = hn::NegMulAdd(z, sum, value);
    hn::StoreU(hn::MulAdd(s, value, hn::LoadU(df, y)), df, y);
  }

 private:
  VF step_, sum_, center_;
};

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_DOT_INL_H_
