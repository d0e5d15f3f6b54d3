// Statistics that the host reads of a step's logits: the likeliest token, the sums of the softmax and the second largest logit.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/host/softmax_sums.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <limits>

#include "common/export.h"
#include "cpu/simd/target.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

int64_t SoftmaxSums(const float* logits, size_t size, float* sums) {
  const hn::ScalableTag<float> d;
  const size_t lanes = hn::Lanes(d), whole = size - size % lanes;
  const auto zero = hn::Zero(d);
  const auto rest = hn::FirstN(d, size - whole);  // of the last, incomplete vector
  const auto last = hn::LoadN(d, logits + whole, size - whole);

  // Two of each, so that a step needn't wait for the one before. A sum of zeros is NaN where one factor wasn't finite.
  const auto lowest = hn::Set(d, std::numeric_limits<float>::lowest());
  auto top0 = lowest, top1 = hn::IfThenElse(rest, last, lowest);
  auto second0 = lowest, second1 = lowest;  // the second largest of each lane
  auto finite0 = zero, finite1 = hn::Mul(last, zero);
  size_t i = 0;
  for (; i + 2 * lanes <= whole; i += 2 * lanes) {
    const auto a = hn::LoadU(d, logits + i), b = hn::LoadU(d, logits + i + lanes);
    second0 = hn::Max(second0, hn::Min(top0, a));
    second1 = hn::Max(second1, hn::Min(top1, b));
    top0 = hn::Max(top0, a);
    top1 = hn::Max(top1, b);
    finite0 = hn::MulAdd(a, zero, finite0);
    finite1 = hn::MulAdd(b, zero, finite1);
  }
  if (i < whole) {
    const auto a = hn::LoadU(d, logits + i);
    second0 = hn::Max(second0, hn::Min(top0, a));
    top0 = hn::Max(top0, a);
    finite0 = hn::MulAdd(a, zero, finite0);
  }
  if (!(hn::ReduceSum(d, hn::Add(finite0, finite1)) == 0.0f)) return -1;
  const auto tops = hn::Max(top0, top1);
  const auto largest = hn::Set(d, hn::ReduceMax(d, tops));
  const auto has_largest = hn::Eq(tops, largest);
  const auto others = hn::IfThenElse(has_largest, lowest, tops);  // a lane that has the largest holds no other one here
  const auto seconds = hn::Max(hn::Max(second0, second1), hn::Min(top0, top1));
  sums[2] = hn::CountTrue(d, has_largest) > 1 ? hn::GetLane(largest) : hn::ReduceMax(d, hn::Max(seconds, others));

  // Sums of stretches first, which keeps rounding small.
  const auto floor = hn::Set(d, -200.0f);  // far below what float32 holds of an exponential
  auto total = zero, moment = zero;
  const auto add = [&](auto logit, auto& exponentials, auto& products) HWY_ATTR {
    const auto centred = hn::Max(hn::Sub(logit, largest), floor);
    const auto exponential = hn::Exp(d, centred);
    exponentials = hn::Add(exponentials, exponential);
    products = hn::MulAdd(exponential, centred, products);
  };
  constexpr size_t kStretch = 64;
  for (i = 0; i < whole;) {
    auto exponentials = zero, products = zero;
    for (size_t count = 0; count < kStretch && i < whole; ++count, i += lanes) {
      add(hn::LoadU(d, logits + i), exponentials, products);
    }
    total = hn::Add(total, exponentials);
    moment = hn::Add(moment, products);
  }
  auto exponentials = zero, products = zero;
  add(last, exponentials, products);
  total = hn::Add(total, hn::IfThenElseZero(rest, exponentials));
  moment = hn::Add(moment, hn::IfThenElseZero(rest, products));
  sums[0] = hn::ReduceSum(d, total);
  sums[1] = hn::ReduceSum(d, moment);

  for (i = 0; i < whole; i += lanes) {
    const intptr_t at = hn::FindFirstTrue(d, hn::Eq(hn::LoadU(d, logits + i), largest));
    if (at >= 0) return static_cast<int64_t>(i) + at;
  }
  return static_cast<int64_t>(whole) + hn::FindFirstTrue(d, hn::Eq(hn::IfThenElse(rest, last, lowest), largest));
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

// Of `size` > 0 logits x with the largest one m: returns the index of the first m, and in `sums` the sum of exp(x - m),
// that of exp(x - m) (x - m), and the second largest logit, the lowest float32 where size is 1. Returns -1 where a
// logit is not finite.
extern "C" SOL_EXPORT int64_t SolOpsSoftmaxSums(const float* logits, size_t size, float* sums) {
  static const auto softmax_sums = SOL_BEST_TARGET(SoftmaxSums);
  return softmax_sums(logits, size, sums);
}

}  // namespace sol
#endif
