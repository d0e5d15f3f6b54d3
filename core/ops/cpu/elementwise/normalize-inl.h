// The norms before attention, before the MLP and before the LM head, of one token x [n], in float32:
//
//   RMS norm      y = x / sqrt(mean(x^2) + epsilon) * weight                               no bias
//   layer norm    y = (x - mean(x)) / sqrt(variance(x) + epsilon) * weight + bias
//
// weight, bias and y are [n]. A vector has one channel a lane, in order.

#if defined(SOL_NORMALIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_NORMALIZE_INL_H_
#undef SOL_NORMALIZE_INL_H_
#else
#define SOL_NORMALIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <cmath>
#include <cstddef>

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Sum of f(x) over n floats; f of the lanes after the end counts as 0.
template <class F>
HWY_INLINE float SumOf(const float* x, size_t n, const F& f) {
  const hn::ScalableTag<float> d;
  constexpr size_t kLanes = hn::MaxLanes(d);
  auto sum0 = hn::Zero(d), sum1 = hn::Zero(d);
  size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    sum0 = hn::Add(sum0, f(hn::LoadU(d, x + i)));
    sum1 = hn::Add(sum1, f(hn::LoadU(d, x + i + kLanes)));
  }
  for (; i < n; i += kLanes) {
    const size_t left = n - i < kLanes ? n - i : kLanes;
    sum0 = hn::Add(sum0, hn::IfThenElseZero(hn::FirstN(d, left), f(hn::LoadN(d, x + i, left))));
  }
  return hn::ReduceSum(d, hn::Add(sum0, sum1));
}

inline void Normalize(const float* x, size_t n, const float* weight, const float* bias, float epsilon, float* y) {
  const hn::ScalableTag<float> d;
  using V = hn::Vec<decltype(d)>;
  constexpr size_t kLanes = hn::MaxLanes(d);
  const float count = static_cast<float>(n);
  const float mean = bias == nullptr ? 0.0f : SumOf(x, n, [](V v) HWY_ATTR { return v; }) / count;
  const V vmean = hn::Set(d, mean);
  const float squares = SumOf(x, n, [vmean](V v) HWY_ATTR {
    const V off = hn::Sub(v, vmean);
    return hn::Mul(off, off);
  });
  const V scale = hn::Set(d, 1.0f / std::sqrt(squares / count + epsilon));
  for (size_t i = 0; i < n; i += kLanes) {
    const size_t left = n - i < kLanes ? n - i : kLanes;
    const V off = hn::Mul(hn::Sub(hn::LoadN(d, x + i, left), vmean), scale);
    const V w = hn::LoadN(d, weight + i, left);
    hn::StoreN(bias == nullptr ? hn::Mul(off, w) : hn::MulAdd(off, w, hn::LoadN(d, bias + i, left)), d, y + i, left);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_NORMALIZE_INL_H_
