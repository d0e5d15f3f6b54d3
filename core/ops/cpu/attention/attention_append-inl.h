// Appends new tokens to the cache, one page of four tokens of one KV head at a time. docs/reference/bundle-details.md section 3, SparseAttention, has the
// arithmetic.
//
//   key, value [Hk, C, D]      the rotated k and v. float16: rounded. int8: codes round(x / s) with s = max |x| / 127, float16, of the row
//   key_scale, value_scale     float16 [Hk, C], s of an int8 cache
//   key_codes [Hk, C, D/2]     of the key as the cache holds it, 4 bits a channel: round((k - m) / step), clamped to 0 … 15
//   key_range [Hk, C, 2]       float16, m = min k and step = (max k - min k) / 15; of a page four m, then four step
//
// By the key codes old tokens are chosen. Within a page they lie four bytes of each token in turn, so that a 32-bit lane of a vector of sums
// belongs to one token. While a row is appended, a vector has one channel a lane.

#if defined(SOL_RT_OPS_ATTENTION_APPEND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#undef SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_APPEND_INL_H_
#endif

#include <algorithm>
#include <type_traits>

#include "cpu/attention/attention_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

// Rounds a row of `dim` floats, of which whole vectors may be read.
HWY_INLINE void RoundRow(const float* from, int64_t dim, hwy::float16_t* to) {
  for (int64_t i = 0; i < dim; i += kLanes) StoreHalf(hn::LoadU(F32(), from + i), to + i, dim - i);
}

// Codes are whole steps of the scale, max |x| / 127 as float16; where that is 0, so are they. A scale that float16 rounds down a lot, below
// 2^-14, leaves the largest numbers beyond 127 steps: they get 127. One beyond float16 is infinite, that of a row with NaN is NaN, and
// what attends it is not finite.
HWY_INLINE void RoundRow(const float* from, int64_t dim, int8_t* to, hwy::float16_t* scale) {
  const F32 d;
  const I32 di;
  auto largest = hn::Zero(di);  // by its bits, which are in the order of magnitudes, NaN above all
  for (int64_t i = 0; i < dim; i += kLanes) {
    largest = hn::Max(largest, hn::BitCast(di, hn::Abs(hn::LoadN(d, from + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i))))));
  }
  const VF most_of_row = hn::BitCast(d, hn::Set(di, hn::ReduceMax(di, largest)));
  StoreHalf(hn::Div(most_of_row, hn::Set(d, 127.0f)), scale, 1);
  const VF step = hn::Set(d, hn::GetLane(LoadFloats(scale, 1)));
  const auto none = hn::Eq(step, hn::Zero(d));
  const VF most = hn::Set(d, 127.0f);
  for (int64_t i = 0; i < dim; i += kLanes) {
    const VF steps = hn::IfThenZeroElse(none, hn::Div(hn::LoadU(d, from + i), step));
    const auto codes = hn::DemoteTo(I8(), hn::NearestInt(hn::Max(hn::Min(steps, most), hn::Neg(most))));
    hn::StoreN(codes, I8(), to + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i)));
  }
}

// Codes of 4 bits of a key of `dim` floats, two a byte, and the minimum and the step that they count from.
HWY_INLINE void CodeKey(const float* key, int64_t dim, uint8_t* codes, hwy::float16_t* minimum, hwy::float16_t* step) {
  const F32 d;
  const hn::Rebind<uint8_t, F32> d8;
  const hn::Repartition<uint16_t, decltype(d8)> d16;
  const hn::Rebind<uint8_t, decltype(d16)> packed;
  VF lows = hn::Set(d, key[0]), highs = lows;
  for (int64_t i = 0; i < dim; i += kLanes) {
    const VF numbers = hn::LoadNOr(hn::Set(d, key[0]), d, key + i, static_cast<size_t>(HWY_MIN(kLanes, dim - i)));
    lows = hn::Min(lows, numbers);
    highs = hn::Max(highs, numbers);
  }
  const float low = hn::ReduceMin(d, lows), high = hn::ReduceMax(d, highs);
  *minimum = hwy::F16FromF32(low);
  *step = hwy::F16FromF32((high - low) / 15.0f);
  const VF from = hn::Set(d, hwy::F32FromF16(*minimum)), by = hn::Set(d, hwy::F32FromF16(*step));
  const auto none = hn::Eq(by, hn::Zero(d));
  for (int64_t i = 0; i < dim; i += kLanes) {
    const VF steps = hn::IfThenZeroElse(none, hn::Div(hn::Sub(hn::LoadU(d, key + i), from), by));
    const VF clamped = hn::Max(hn::Min(steps, hn::Set(d, 15.0f)), hn::Zero(d));
    const auto pairs = hn::BitCast(d16, hn::DemoteTo(d8, hn::NearestInt(clamped)));
    const auto bytes = hn::TruncateTo(packed, hn::Or(pairs, hn::ShiftRight<4>(pairs)));
    hn::StoreN(bytes, packed, codes + i / 2, static_cast<size_t>(HWY_MIN(kLanes, dim - i) / 2));
  }
}

// Codes of a page's first `count` keys: within the page the tokens' bytes lie in turn, four of each, so that a vector of sums has a token a
// lane.
template <class Element>
HWY_INLINE void CodePage(const AttentionCall& call, int64_t kv_head, int64_t page, int64_t count) {
  const int64_t dim = call.head_dim, bytes = call.CodeBytes(), whole = bytes / 4 * 4, rest = bytes - whole;
  uint8_t* codes = call.PageCodes(kv_head, page);
  hwy::float16_t* range = call.PageRange(kv_head, page);
  HWY_ALIGN float key[kMaxHeadDim + kMaxLanes];
  HWY_ALIGN uint8_t row[kMaxHeadDim / 2];
  for (int64_t t = 0; t < count; ++t) {
    const int64_t position = page * kPageSize + t;
    const Element* from = call.KeyRow<Element>(kv_head, position);
    for (int64_t i = 0; i < dim; i += kLanes) {
      VF numbers = LoadFloats(from + i, HWY_MIN(kLanes, dim - i));
      if constexpr (std::is_same_v<Element, int8_t>) {
        numbers = hn::Mul(numbers, hn::Set(F32(), hwy::F32FromF16(call.key_scale[call.ScaleOffset(kv_head, position)])));
      }
      hn::StoreU(numbers, F32(), key + i);
    }
    CodeKey(key, dim, row, range + t, range + kPageSize + t);
    for (int64_t i = 0; i < whole; i += 4) std::copy_n(row + i, 4, codes + kPageSize * i + 4 * t);
    std::copy_n(row + whole, rest, codes + kPageSize * whole + rest * t);
  }
}

// Writes the new tokens of one page of one KV head and codes all its valid keys, so that a page that was partly rewound is right again.
template <class Element>
HWY_INLINE void AppendPageOf(const AttentionCall& call, int64_t kv_head, int64_t page) {
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
  CodePage<Element>(call, kv_head, page, end - page_begin);
}

void AppendPage(const AttentionCall& call, int64_t kv_head, int64_t page) {
  WithElement(call, [&](auto element) HWY_ATTR { AppendPageOf<decltype(element)>(call, kv_head, page); });
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_APPEND_INL_H_
