// Appending to the cache: rotary on k, rounding of k and v to the cache's type, page summaries.
#if defined(SOL_RT_OPS_ATTENTION_APPEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#undef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "attention_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

// Rounds a row of `dim` floats, of which whole vectors may be read.
HWY_INLINE void RoundRow(const float* from, int64_t dim, hwy::float16_t* to) {
  for (int64_t i = 0; i < dim; i += kLanes) StoreHalf(hn::LoadU(F32(), from + i), to + i, dim - i);
}

// Codes are whole steps of the scale, max |x| / 127 as float16; where that is 0, so are they. A scale that float16 rounds down a lot, below
// 2^-14, leaves the largest numbers beyond 127 steps: they get 127. One beyond float16 is infinite, and what attends it is not finite.
HWY_INLINE void RoundRow(const float* from, int64_t dim, int8_t* to, hwy::float16_t* scale) {
  const F32 d;
  VF largest = hn::Zero(d);
  for (int64_t i = 0; i < dim; i += kLanes) {
    largest = hn::Max(largest, hn::Abs(hn::LoadN(d, from + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i)))));
  }
  StoreHalf(hn::Div(hn::Set(d, hn::ReduceMax(d, largest)), hn::Set(d, 127.0f)), scale, 1);
  const VF step = hn::Set(d, hn::GetLane(LoadFloats(scale, 1)));
  const auto none = hn::Eq(step, hn::Zero(d));
  const VF most = hn::Set(d, 127.0f);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const VF steps = hn::IfThenZeroElse(none, hn::Div(hn::LoadU(d, from + i), step));
    const auto codes = hn::DemoteTo(I8(), hn::NearestInt(hn::Max(hn::Min(steps, most), hn::Neg(most))));
    hn::StoreN(codes, I8(), to + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i)));
  }
}

// Writes the new tokens of one page of one KV head and recomputes the page's summary from all its valid keys.
template <class Element>
HWY_INLINE void AppendPageOf(const AttentionCall& call, int64_t kv_head, int64_t page) {
  const F32 d;
  const int64_t dim = call.head_dim;
  const int64_t page_begin = page * kPageSize;
  const int64_t end = HWY_MIN(page_begin + kPageSize, call.total);
  HWY_ALIGN float rotated[kMaxHeadDim];
  HWY_ALIGN float value[kMaxHeadDim] = {};
  for (int64_t position = HWY_MAX(page_begin, call.past); position < end; ++position) {
    RotateRow(call, call.KeySource(position - call.past, kv_head), position, 1.0f, rotated);
    std::copy_n(call.ValueSource(position - call.past, kv_head), dim, value);
    auto* key_row = call.KeyRow<Element>(kv_head, position);
    auto* value_row = call.ValueRow<Element>(kv_head, position);
    if constexpr (std::is_same_v<Element, int8_t>) {
      const int64_t scale = call.ScaleOffset(kv_head, position);
      RoundRow(rotated, dim, key_row, call.key_scale + scale);
      RoundRow(value, dim, value_row, call.value_scale + scale);
    } else {
      RoundRow(rotated, dim, key_row);
      RoundRow(value, dim, value_row);
    }
  }
  hwy::float16_t* low_row = call.page_min + call.SummaryOffset(kv_head, page);
  hwy::float16_t* high_row = call.page_max + call.SummaryOffset(kv_head, page);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t n = HWY_MIN(kLanes, dim - i);
    const auto load = [&](int64_t position) HWY_ATTR {
      const VF key = LoadFloats(call.KeyRow<Element>(kv_head, position) + i, n);
      if constexpr (std::is_same_v<Element, int8_t>) {
        return hn::Mul(key, hn::Set(d, hwy::F32FromF16(call.key_scale[call.ScaleOffset(kv_head, position)])));
      }
      return key;
    };
    VF low = load(page_begin);
    VF high = low;
    for (int64_t position = page_begin + 1; position < end; ++position) {
      const VF key = load(position);
      low = hn::Min(low, key);
      high = hn::Max(high, key);
    }
    StoreHalf(low, low_row + i, n);
    StoreHalf(high, high_row + i, n);
  }
}

void AppendPage(const AttentionCall& call, int64_t kv_head, int64_t page) {
  WithElement(call, [&](auto element) HWY_ATTR { AppendPageOf<decltype(element)>(call, kv_head, page); });
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_APPEND_INL_H_
