// Causal attention of many new tokens: a block has some queries of one head and goes over the keys in tiles, in float32.

#include "attention_cache.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;

// kDim: room for a head. A tile's keys make way for its values.
template <int kDim>
struct PromptSizes {
  static constexpr int kQueries = kDim > 128 ? 16 : 32;
  static constexpr int kKeys = kDim > 128 ? 16 : 32;
  static constexpr int kPitch = kDim + 1;
};
template <int kDim>
struct PromptShared {
  using Sizes = PromptSizes<kDim>;
  float query[Sizes::kQueries][Sizes::kPitch];
  float tile[Sizes::kKeys][Sizes::kPitch];
  float scores[Sizes::kQueries][Sizes::kKeys + 1];
  float most[Sizes::kQueries], total[Sizes::kQueries], factor[Sizes::kQueries];
};

template <class Element, int kDim>
__global__ void __launch_bounds__(kThreads) PromptKernel(AttentionCall call) {
  using Sizes = PromptSizes<kDim>;
  constexpr int kQueries = Sizes::kQueries, kKeys = Sizes::kKeys;
  constexpr int kColumns = kDim < kThreads ? kDim : kThreads;       // of values, one a thread at a time
  constexpr int kRowsAThread = kQueries * kColumns / kThreads, kColumnsAThread = kDim / kColumns;
  constexpr bool kInt8 = sizeof(Element) == 1;
  using Shared = PromptShared<kDim>;
  SOL_SHARED(Shared, shared);
  const Step step = ReadStep(call);
  const int thread = static_cast<int>(threadIdx.x), lane = Lane(), warp = WarpOfBlock(), dim = call.head_dim;
  const int head = static_cast<int>(blockIdx.y), kv_head = head / call.group;
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * kQueries;  // late queries see more keys: the longest work goes first
  const int queries = call.tokens - first < kQueries ? call.tokens - first : kQueries;
  float* y = call.y + (static_cast<int64_t>(first) * call.heads + head) * dim;
  const int64_t y_pitch = static_cast<int64_t>(call.heads) * dim;
  if (!step.valid) {
    for (int i = thread; i < queries * dim; i += kThreads) y[i / dim * y_pitch + i % dim] = __uint_as_float(0x7fc00000u);
    return;
  }
  for (int i = thread; i < kQueries * dim; i += kThreads) {
    const int q = i / dim, d = i % dim;
    shared.query[q][d] =
        q < queries ? Rotated(call, QueryRow(call, first + q, head), step.past + first + q, d) * (call.scale * kLog2E) : 0.0f;
  }
  if (thread < kQueries) {
    shared.most[thread] = -INFINITY;
    shared.total[thread] = 0.0f;
  }
  const int64_t offset = static_cast<int64_t>(kv_head) * call.capacity;
  const Element* keys = static_cast<const Element*>(call.key) + offset * dim;
  const Element* values = static_cast<const Element*>(call.value) + offset * dim;
  const int column = thread % kColumns, row0 = thread / kColumns * kRowsAThread;
  float sums[kRowsAThread][kColumnsAThread] = {};
  const int end = step.past + first + queries;
  const auto load = [&](const Element* from, const uint16_t* scale, int key0) {
    for (int i = thread; i < kKeys * dim; i += kThreads) {
      const int key = i / dim, position = key0 + key;
      float number = 0.0f;
      if (position < end) {
        number = NumberOf(from[static_cast<int64_t>(position) * dim + i % dim]);
        if (kInt8) number *= HalfToFloat(scale[offset + position]);
      }
      shared.tile[key][i % dim] = number;
    }
  };
  for (int key0 = 0; key0 < end; key0 += kKeys) {
    __syncthreads();
    load(keys, call.key_scale, key0);
    __syncthreads();
    constexpr int kKeyGroups = kThreads / kKeys;  // threads of one key
    const int key = thread % kKeys, group = thread / kKeys;
    float dots[kQueries / kKeyGroups] = {};
    for (int d = 0; d < dim; ++d) {
      const float number = shared.tile[key][d];
#pragma unroll
      for (int i = 0; i < kQueries / kKeyGroups; ++i) dots[i] += number * shared.query[group + i * kKeyGroups][d];
    }
#pragma unroll
    for (int i = 0; i < kQueries / kKeyGroups; ++i) {
      const int q = group + i * kKeyGroups;
      shared.scores[q][key] = key0 + key <= step.past + first + q && q < queries ? dots[i] : -INFINITY;
    }
    __syncthreads();
    for (int q = warp; q < kQueries; q += kWarps) {
      const float score = lane < kKeys ? shared.scores[q][lane] : -INFINITY;
      const float before = shared.most[q], most = fmaxf(before, WarpMax(score));
      const float from = most == -INFINITY ? 0.0f : most;
      const float weight = lane < kKeys ? exp2f(score - from) : 0.0f;
      const float total = WarpSum(weight);
      if (lane < kKeys) shared.scores[q][lane] = weight;
      if (lane == 0) {
        const float factor = exp2f(before - from);
        shared.most[q] = most;
        shared.factor[q] = factor;
        shared.total[q] = shared.total[q] * factor + total;
      }
    }
    load(values, call.value_scale, key0);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < kRowsAThread; ++i) {
      const float factor = shared.factor[row0 + i];
#pragma unroll
      for (int j = 0; j < kColumnsAThread; ++j) sums[i][j] *= factor;
    }
    for (int k = 0; k < kKeys; ++k) {
#pragma unroll
      for (int j = 0; j < kColumnsAThread; ++j) {
        const int d = column + j * kColumns;
        const float number = d < dim ? shared.tile[k][d] : 0.0f;
#pragma unroll
        for (int i = 0; i < kRowsAThread; ++i) sums[i][j] += shared.scores[row0 + i][k] * number;
      }
    }
  }
#pragma unroll
  for (int i = 0; i < kRowsAThread; ++i) {
#pragma unroll
    for (int j = 0; j < kColumnsAThread; ++j) {
      const int q = row0 + i, d = column + j * kColumns;
      if (q < queries && d < dim) y[q * y_pitch + d] = sums[i][j] / shared.total[q];
    }
  }
}

template <class Element>
void AttendPromptOf(Stream stream, const AttentionCall& call) {
  const auto launch = [&](auto kernel, int queries) {
    const dim3 grid(static_cast<unsigned>(DivideUp(call.tokens, queries)), static_cast<unsigned>(call.heads));
    Launch(kernel, grid, kThreads, 0, stream, call);
  };
  if (call.head_dim <= 64) {
    launch(PromptKernel<Element, 64>, PromptSizes<64>::kQueries);
  } else if (call.head_dim <= 128) {
    launch(PromptKernel<Element, 128>, PromptSizes<128>::kQueries);
  } else {
    launch(PromptKernel<Element, 256>, PromptSizes<256>::kQueries);
  }
}

}  // namespace

void AttendPrompt(Stream stream, const AttentionCall& call) {
  (call.int8 ? AttendPromptOf<int8_t> : AttendPromptOf<uint16_t>)(stream, call);
}

}  // namespace sol::cuda
