// The cache as kernels see it: rows as floats, rotary embedding, appending the new tokens of a page.
#pragma once

#include "cuda/attention/attention_kernels.h"
#include "cuda/device/block.h"

namespace sol::cuda {

// Sizes that a call reads of its counts.
struct Step {
  int past, total, pages, old;  // tokens before, tokens in all, pages, tokens before the newest page
  int first;                    // where the first new token's window begins; 0 without one
  int64_t kv_pages;
  bool valid, sparse;
};

__device__ __forceinline__ Step ReadStep(const AttentionCall& call) {
  const int64_t past = *call.past_length;
  Step step;
  step.kv_pages = *call.kv_pages;
  step.valid = past >= 0 && past <= call.capacity - call.tokens && past + call.tokens <= call.table_rows && step.kv_pages >= 0;
  step.past = step.valid ? static_cast<int>(past) : 0;
  step.total = step.past + call.tokens;
  step.pages = (step.total + kPageSize - 1) / kPageSize;
  step.old = (step.pages - 1) * kPageSize;
  step.first = call.window > 0 && step.past >= call.window ? step.past + 1 - call.window : 0;
  const int old_pages = step.pages - 1, of_window = old_pages - step.first / kPageSize;
  if (step.first > 0 && step.kv_pages < old_pages) step.kv_pages = (step.kv_pages * of_window + old_pages - 1) / old_pages;
  step.sparse = call.tokens == 1 && step.kv_pages < of_window;
  return step;
}

// A score in units of log2 under the soft cap.
__device__ __forceinline__ float Capped(const AttentionCall& call, float score) {
  if (call.softcap <= 0.0f) return score;
  const float cap = call.softcap * kLog2E;
  return cap * tanhf(score / cap);
}

__device__ __forceinline__ const float* QueryRow(const AttentionCall& call, int token, int head) {
  return call.qkv + (static_cast<int64_t>(token) * (call.heads + 2 * call.kv_heads) + head) * call.head_dim;
}

// Channel d of a row after the half-split rotation.
__device__ __forceinline__ float Rotated(const AttentionCall& call, const float* row, int position, int d) {
  const int half = call.rotary_dim / 2;
  if (d >= 2 * half) return row[d];
  const int i = d < half ? d : d - half;
  const float c = call.cos[static_cast<int64_t>(position) * half + i], s = call.sin[static_cast<int64_t>(position) * half + i];
  return d < half ? row[d] * c - row[d + half] * s : row[d] * c + row[d - half] * s;
}

__device__ __forceinline__ float NumberOf(uint16_t half) { return HalfToFloat(half); }
__device__ __forceinline__ float NumberOf(int8_t code) { return static_cast<float>(code); }

// Place of byte j of a token's codes within its page.
__device__ __forceinline__ int CodePlace(int head_dim, int token, int j) {
  const int whole = head_dim / 8 * 4, rest = head_dim / 2 - whole;
  return j < whole ? j / 4 * 16 + token * 4 + j % 4 : whole * kPageSize + rest * token + j - whole;
}

struct AppendShared {
  float rows[2 * kPageSize][kMaxHeadDim];
};

// Rounds the warp's row of floats to the cache's type, writes it, and leaves in the row what the cache holds.
template <class Element>
__device__ void StoreRow(float* row, int dim, Element* to, uint16_t* scale) {
  if constexpr (sizeof(Element) == 1) {
    uint32_t most = 0;
    for (int d = Lane(); d < dim; d += kWarp) {
      const uint32_t bits = __float_as_uint(row[d]) & 0x7fffffffu;
      most = most > bits ? most : bits;
    }
    const uint16_t half = HalfFromFloat(__uint_as_float(WarpMax(most)) / 127.0f);  // NaN wins, and spoils the row
    const float step = HalfToFloat(half);
    for (int d = Lane(); d < dim; d += kWarp) {
      const float steps = step == 0.0f ? 0.0f : row[d] / step;
      const int code = __float2int_rn(fminf(fmaxf(steps, -127.0f), 127.0f));
      to[d] = static_cast<Element>(code);
      row[d] = __fmul_rn(step, static_cast<float>(code));
    }
    if (Lane() == 0) *scale = half;
  } else {
    for (int d = Lane(); d < dim; d += kWarp) {
      to[d] = HalfFromFloat(row[d]);
      row[d] = HalfToFloat(to[d]);
    }
  }
}

// By the whole block: writes the new tokens of one page of a KV head, and codes all its keys, so that a page that was partly rewound is
// right again.
template <class Element>
__device__ void AppendPage(const AttentionCall& call, const Step& step, int kv_head, int page, AppendShared& shared) {
  const int dim = call.head_dim, lane = Lane();
  for (int item = WarpOfBlock(); item < 2 * kPageSize; item += static_cast<int>(blockDim.x) / kWarp) {
    const bool is_key = item < kPageSize;
    const int token = item % kPageSize, position = page * kPageSize + token;
    const bool fresh = position >= step.past;
    if (position >= step.total || (!is_key && !fresh)) continue;
    float* row = shared.rows[item];
    const int64_t at = static_cast<int64_t>(kv_head) * call.capacity + position;
    Element* to = static_cast<Element*>(is_key ? call.key : call.value) + at * dim;
    if (fresh) {
      const float* from = QueryRow(call, position - step.past, call.heads + (is_key ? 0 : call.kv_heads) + kv_head);
      for (int d = lane; d < dim; d += kWarp) row[d] = is_key ? Rotated(call, from, position, d) : from[d];
      StoreRow<Element>(row, dim, to, (is_key ? call.key_scale : call.value_scale) + (sizeof(Element) == 1 ? at : 0));
    } else {
      const float scale = sizeof(Element) == 1 ? HalfToFloat(call.key_scale[at]) : 1.0f;
      for (int d = lane; d < dim; d += kWarp) row[d] = __fmul_rn(scale, NumberOf(to[d]));
    }
    if (!is_key) continue;
    __syncwarp();
    float low = row[0], high = row[0];
    for (int d = lane; d < dim; d += kWarp) {
      low = fminf(low, row[d]);
      high = fmaxf(high, row[d]);
    }
    low = -WarpMax(-low);
    high = WarpMax(high);
    const uint16_t minimum = HalfFromFloat(low), unit = HalfFromFloat((high - low) / 15.0f);
    const float from = HalfToFloat(minimum), by = HalfToFloat(unit);
    const int64_t first = static_cast<int64_t>(kv_head) * call.capacity + page * kPageSize;
    uint8_t* codes = call.key_codes + first * (dim / 2);
    const auto code = [&](float number) {
      return by == 0.0f ? 0 : __float2int_rn(fminf(fmaxf((number - from) / by, 0.0f), 15.0f));
    };
    for (int j = lane; j < dim / 2; j += kWarp) {
      codes[CodePlace(dim, token, j)] = static_cast<uint8_t>(code(row[2 * j]) | code(row[2 * j + 1]) << 4);
    }
    if (lane == 0) {
      call.key_range[first * 2 + token] = minimum;
      call.key_range[first * 2 + kPageSize + token] = unit;
    }
  }
}

}  // namespace sol::cuda
