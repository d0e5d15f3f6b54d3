// Vector helpers of attention: rows of the cache as floats, sums over lanes, powers of two, rotary embedding.
//
//   RotateRow    half-split rotation of one head's row [D]: for i < rotary_dim / 2, with cos and sin of the row's position,
//                  y[i]                  = x[i] cos[i] - x[i + rotary_dim / 2] sin[i]
//                  y[i + rotary_dim / 2] = x[i] sin[i] + x[i + rotary_dim / 2] cos[i]
//                and y[i] = x[i] from rotary_dim on
//   Exp2         2^x. Scores are in units of log2, so that softmax needs no other power.
//   SoftCap      cap tanh(x / cap)
//
// A vector has one channel of a row a lane, in order.

#if defined(SOL_RT_OPS_ATTENTION_MATH_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_MATH_INL_H_
#undef SOL_RT_OPS_ATTENTION_MATH_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_MATH_INL_H_
#endif

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>

#include "cpu/attention/attention_call.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using F32 = hn::CappedTag<float, kMaxLanes>;
using F16 = hn::Rebind<hwy::float16_t, F32>;
using I32 = hn::RebindToSigned<F32>;
using I8 = hn::Rebind<int8_t, F32>;
using Quad = hn::FixedTag<float, 4>;
using VF = hn::Vec<F32>;
using VQuad = hn::Vec<Quad>;

inline constexpr int64_t kLanes = static_cast<int64_t>(HWY_MAX_LANES_D(F32));

// Calls f with a value of the cache's element type.
template <class F>
HWY_INLINE void WithElement(const AttentionCall& call, F&& f) {
  if (call.int8) {
    f(int8_t());
  } else {
    f(hwy::float16_t());
  }
}

// Numbers as floats; codes without their scale.
HWY_INLINE VF LoadFloats(const hwy::float16_t* from) { return hn::PromoteTo(F32(), hn::LoadU(F16(), from)); }
HWY_INLINE VF LoadFloats(const hwy::float16_t* from, int64_t count) {
  return hn::PromoteTo(F32(), hn::LoadN(F16(), from, static_cast<size_t>(count)));
}
HWY_INLINE VF LoadFloats(const int8_t* from) { return hn::ConvertTo(F32(), hn::PromoteTo(I32(), hn::LoadU(I8(), from))); }
HWY_INLINE VF LoadFloats(const int8_t* from, int64_t count) {
  return hn::ConvertTo(F32(), hn::PromoteTo(I32(), hn::LoadN(I8(), from, static_cast<size_t>(count))));
}
HWY_INLINE void StoreHalf(VF v, hwy::float16_t* to, int64_t count) {
  hn::StoreN(hn::DemoteTo(F16(), v), F16(), to, static_cast<size_t>(HWY_MIN(count, kLanes)));
}

template <class D, HWY_IF_V_SIZE_D(D, 16)>
HWY_INLINE hn::Vec<D> AddBlocks(D, hn::Vec<D> v) {
  return v;
}
template <class D, HWY_IF_V_SIZE_GT_D(D, 16)>
HWY_INLINE hn::Vec<hn::FixedTag<hn::TFromD<D>, 4>> AddBlocks(D d, hn::Vec<D> v) {
  const hn::Half<D> half;
  return AddBlocks(half, hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
}

// Lane i of the result is the sum of the lanes of the i-th argument. All four sums are added up in the same order, so that equal
// arguments give equal sums.
HWY_INLINE VQuad SumOfEach(VF a, VF b, VF c, VF e) {
  const F32 d;
  const hn::Repartition<uint64_t, F32> d64;
  const auto ab = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b)));
  const auto ce = hn::BitCast(d64, hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e)));
  return AddBlocks(d, hn::Add(hn::BitCast(d, hn::InterleaveLower(d64, ab, ce)), hn::BitCast(d, hn::InterleaveUpper(d64, ab, ce))));
}

// 2^x for x <= 0, relative error below 2e-7; 0 below 2^-125. NaN passes.
HWY_INLINE VF Exp2(VF x) {
  const F32 d;
  const I32 di;
  const VF low = hn::Set(d, -125.0f);
  const VF clamped = hn::Max(low, x);  // in this order: where one is NaN, x86 gives the second
  const VF whole = hn::Round(clamped);
  const VF r = hn::Sub(clamped, whole);
  VF p = hn::Set(d, 0.0013276466800130199f);
  p = hn::MulAdd(p, r, hn::Set(d, 0.009675541293018619f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.05550713289559857f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.2402211972487151f));
  p = hn::MulAdd(p, r, hn::Set(d, 0.6931469670549252f));
  p = hn::MulAdd(p, r, hn::Set(d, 1.0000000716543649f));
  const auto shifted = hn::Add(hn::BitCast(di, p), hn::ShiftLeft<23>(hn::ConvertTo(di, whole)));
  return hn::IfThenZeroElse(hn::Lt(x, low), hn::BitCast(d, shifted));
}

// cap tanh(x / cap), absolute error below 1e-6 cap. NaN passes.
HWY_INLINE VF SoftCap(VF x, float cap) {
  const F32 d;
  const VF one = hn::Set(d, 1.0f), limit = hn::Set(d, cap);
  const VF power = Exp2(hn::Mul(hn::Div(hn::Abs(x), limit), hn::Set(d, -2.0f * kLog2E)));
  return hn::CopySign(hn::Mul(limit, hn::Div(hn::Sub(one, power), hn::Add(one, power))), x);
}

// Half-split rotary embedding of one row of D floats, times `scale`. `to` has room for D rounded up to kMaxLanes; the padding is zeroed.
HWY_INLINE void RotateRow(const AttentionCall& call, const float* from, int64_t position, float scale, float* to) {
  const F32 d;
  const int64_t half = call.rotary_dim / 2;
  const float* cos = call.cos + position * half;
  const float* sin = call.sin + position * half;
  const VF vscale = hn::Set(d, scale);
  for (int64_t i = call.head_dim; i < RoundUp(call.head_dim, kMaxLanes); ++i) to[i] = 0.0f;
  for (int64_t i = 0; i < half; i += kLanes) {
    const size_t n = static_cast<size_t>(HWY_MIN(kLanes, half - i));
    const VF c = hn::Mul(vscale, hn::LoadN(d, cos + i, n));
    const VF s = hn::Mul(vscale, hn::LoadN(d, sin + i, n));
    const VF a = hn::LoadN(d, from + i, n);
    const VF b = hn::LoadN(d, from + half + i, n);
    hn::StoreN(hn::NegMulAdd(b, s, hn::Mul(a, c)), d, to + i, n);
    hn::StoreN(hn::MulAdd(a, s, hn::Mul(b, c)), d, to + half + i, n);
  }
  for (int64_t i = call.rotary_dim; i < call.head_dim; i += kLanes) {
    const size_t n = static_cast<size_t>(HWY_MIN(kLanes, call.head_dim - i));
    hn::StoreN(hn::Mul(vscale, hn::LoadN(d, from + i, n)), d, to + i, n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_MATH_INL_H_
