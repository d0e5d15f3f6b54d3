// The activation of the MLP, in float32: h[i] = act(gate[i]) * up[i], or act(gate[i]) where there is no `up`. All are [n].
//
//   silu         x sigmoid(x)
//   gelu         x/2 (1 + erf(x / sqrt(2)))
//   gelu_tanh    x/2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
//   relu         max(x, 0)
//   relu2        max(x, 0)^2
//
// A vector has one channel a lane, in order.

#if defined(SOL_ACTIVATE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_ACTIVATE_INL_H_
#undef SOL_ACTIVATE_INL_H_
#else
#define SOL_ACTIVATE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "cpu/elementwise/elementwise_kernels.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Sigmoid(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  const V power = hn::Min(hn::Neg(x), hn::Set(d, 88.0f));  // Exp is wrong where it overflows
  return hn::Div(one, hn::Add(one, hn::Exp(d, power)));
}

// The Gaussian error function, absolute error below 2e-7 (Abramowitz and Stegun 7.1.26).
template <class D, class V = hn::Vec<D>>
HWY_INLINE V Erf(D d, V x) {
  const V one = hn::Set(d, 1.0f);
  const V size = hn::Abs(x);
  const V t = hn::Div(one, hn::MulAdd(size, hn::Set(d, 0.3275911f), one));
  V poly = hn::Set(d, 1.061405429f);
  poly = hn::MulAdd(poly, t, hn::Set(d, -1.453152027f));
  poly = hn::MulAdd(poly, t, hn::Set(d, 1.421413741f));
  poly = hn::MulAdd(poly, t, hn::Set(d, -0.284496736f));
  poly = hn::MulAdd(poly, t, hn::Set(d, 0.254829592f));
  const V value = hn::NegMulAdd(hn::Mul(poly, t), hn::Exp(d, hn::Neg(hn::Mul(size, size))), one);
  return hn::CopySign(value, x);
}

template <class D, class V = hn::Vec<D>>
HWY_INLINE V Activated(D d, Activation act, V x) {
  switch (act) {
    case Activation::kSilu:
      return hn::Mul(x, Sigmoid(d, x));
    case Activation::kGelu: {
      const V half = hn::Mul(x, hn::Set(d, 0.5f));
      return hn::MulAdd(half, Erf(d, hn::Mul(x, hn::Set(d, 0.70710678118f))), half);
    }
    case Activation::kGeluTanh: {
      // 0.5 x (1 + tanh(u)) = x sigmoid(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3)
      const V square = hn::Mul(x, x);
      const V u = hn::Mul(x, hn::MulAdd(square, hn::Set(d, 0.0356774081f), hn::Set(d, 0.7978845608f)));
      return hn::Mul(x, Sigmoid(d, hn::Add(u, u)));
    }
    case Activation::kRelu:
    case Activation::kRelu2:
      break;
  }
  const V rectified = hn::IfThenElse(hn::Lt(x, hn::Zero(d)), hn::Zero(d), x);  // NaN passes
  return act == Activation::kRelu2 ? hn::Mul(rectified, rectified) : rectified;
}

inline void Activate(Activation act, const float* gate, const float* up, size_t n, float* h) {
  const hn::ScalableTag<float> d;
  constexpr size_t kLanes = hn::MaxLanes(d);
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    auto value = Activated(d, act, hn::LoadU(d, gate + i));
    if (up != nullptr) value = hn::Mul(value, hn::LoadU(d, up + i));
    hn::StoreU(value, d, h + i);
  }
  if (i < n) {
    auto value = Activated(d, act, hn::LoadN(d, gate + i, n - i));
    if (up != nullptr) value = hn::Mul(value, hn::LoadN(d, up + i, n - i));
    hn::StoreN(value, d, h + i, n - i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_ACTIVATE_INL_H_
