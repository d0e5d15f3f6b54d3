// Appending to the cache: rotary on k, rounding of k and v to float16, page summaries.
#if defined(SOL_RT_OPS_ATTENTION_APPEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#undef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#endif

#include "attention_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

// Writes the new tokens of one page of one KV head and recomputes the page's summary from all its valid keys.
void AppendPage(const AttentionCall& call, int64_t kv_head, int64_t page) {
  const F32 d;
  const int64_t dim = call.head_dim;
  const int64_t page_begin = page * kPageSize;
  const int64_t end = HWY_MIN(page_begin + kPageSize, call.total);
  HWY_ALIGN float rotated[kMaxHeadDim];
  for (int64_t position = HWY_MAX(page_begin, call.past); position < end; ++position) {
    RotateRow(call, call.KeySource(position - call.past, kv_head), position, 1.0f, rotated);
    const float* value = call.ValueSource(position - call.past, kv_head);
    hwy::float16_t* key_row = call.KeyRow(kv_head, position);
    hwy::float16_t* value_row = call.ValueRow(kv_head, position);
    for (int64_t i = 0; i < dim; i += kLanes) {
      StoreHalf(hn::LoadU(d, rotated + i), key_row + i, dim - i);
      StoreHalf(hn::LoadN(d, value + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i))), value_row + i, dim - i);
    }
  }
  hwy::float16_t* low_row = call.page_min + call.SummaryOffset(kv_head, page);
  hwy::float16_t* high_row = call.page_max + call.SummaryOffset(kv_head, page);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const int64_t n = HWY_MIN(kLanes, dim - i);
    VF low = LoadHalf(call.KeyRow(kv_head, page_begin) + i, n);
    VF high = low;
    for (int64_t position = page_begin + 1; position < end; ++position) {
      const VF key = LoadHalf(call.KeyRow(kv_head, position) + i, n);
      low = hn::Min(low, key);
      high = hn::Max(high, key);
    }
    StoreHalf(low, low_row + i, n);
    StoreHalf(high, high_row + i, n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_APPEND_INL_H_
