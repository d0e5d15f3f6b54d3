// Attention of few queries, 1 to 16 new tokens: y = softmax(softmax_scale q k) v, a query at position p seeing keys 0 … p, or the last `window` of these.
//
// The context is split into chunks of 128 places of the cache. A thread block has a chunk of one KV head [128, D] and up to eight queries
// that read it, so that keys and values are read once for all of them. After a selection only the tokens that it chose are read.
//
//   scores [rows, 128]         q k, in units of log2: eight lanes share a key, and each has eight channels of it at a time
//   partial_max, partial_sum   [Hk, chunks, rows], of the chunk's weights 2^(score - max)
//   partial_values             [Hk, chunks, rows, D], the sum of weight v: a warp has a token, a lane two channels
//
// A KV head's last thread block brings the chunks to one maximum and writes y [S, H D].

#include "cuda/attention/attention_cache.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = kChunkTokens;
constexpr int kWarps = kThreads / kWarp;
constexpr int kLanesAToken = 8;  // that share a key
constexpr int kTokensAtOnce = kThreads / kLanesAToken;

template <int kRows, int kPairs>
struct ChunkShared {
  alignas(16) float query[kRows][kPairs * 2 * kWarp];  // rotated, times softmax scale and log2(e)
  float scores[kRows][kChunkTokens];       // then the tokens' weights
  float values[kWarps][kRows][kPairs * 2 * kWarp];
  int tokens[kChunkTokens];
  int limit[kRows];  // the first token that a query does not see yet
  int begin[kRows];  // the first one that it sees
  WarpCounts counts;
  float factor[kRows];
  bool last;
};

// Two channels of a row, or eight.
__device__ __forceinline__ void LoadPair(const uint16_t* from, float (&to)[2]) {
  const uint32_t word = __ldg(reinterpret_cast<const uint32_t*>(from));
  to[0] = HalfToFloat(static_cast<uint16_t>(word));
  to[1] = HalfToFloat(static_cast<uint16_t>(word >> 16));
}
__device__ __forceinline__ void LoadPair(const int8_t* from, float (&to)[2]) {
  const uint16_t word = __ldg(reinterpret_cast<const uint16_t*>(from));
  to[0] = static_cast<float>(static_cast<int8_t>(word));
  to[1] = static_cast<float>(static_cast<int8_t>(word >> 8));
}
__device__ __forceinline__ void LoadEight(const uint16_t* from, float (&to)[8]) {
  const uint4 loaded = __ldg(reinterpret_cast<const uint4*>(from));
  const uint32_t words[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = HalfToFloat(static_cast<uint16_t>(words[i / 2] >> 16 * (i % 2)));
}
__device__ __forceinline__ void LoadEight(const int8_t* from, float (&to)[8]) {
  const uint2 loaded = __ldg(reinterpret_cast<const uint2*>(from));
#pragma unroll
  for (int i = 0; i < 8; ++i) to[i] = static_cast<float>(static_cast<int8_t>((i < 4 ? loaded.x : loaded.y) >> 8 * (i % 4)));
}

// kPairs: pairs of channels a lane has of a value.
template <class Element, int kRows, int kPairs>
__global__ void __launch_bounds__(kThreads) ChunkKernel(AttentionCall call, AttentionScratch scratch) {
  constexpr bool kInt8 = sizeof(Element) == 1;
  using Shared = ChunkShared<kRows, kPairs>;
  SOL_SHARED(Shared, shared);
  const Step step = ReadStep(call);
  const int thread = static_cast<int>(threadIdx.x), lane = Lane(), warp = WarpOfBlock();
  const int chunk = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), pass = static_cast<int>(blockIdx.z);
  const int dim = call.head_dim, group = call.group, first_row = pass * kRows;
  const int rows = call.tokens * group - first_row < kRows ? call.tokens * group - first_row : kRows;
  const auto output = [&](int row) {
    const int token = (first_row + row) / group, head = kv_head * group + (first_row + row) % group;
    return call.y + (static_cast<int64_t>(token) * call.heads + head) * dim;
  };
  if (!step.valid) {
    if (chunk == 0) {
      for (int i = thread; i < rows * dim; i += kThreads) output(i / dim)[i % dim] = __uint_as_float(0x7fc00000u);
    }
    return;
  }
  const int chunks = (step.total + kChunkTokens - 1) / kChunkTokens;
  const int first_chunk = step.first / kChunkTokens;
  if (chunk >= chunks || chunk < first_chunk) return;

  // The tokens to read, in their order.
  const int position = chunk * kChunkTokens + thread;
  bool read = position < step.total && position >= step.first;
  if (step.sparse && read && position < step.old && position >= call.sinks) {
    const uint32_t score = scratch.scores[static_cast<int64_t>(kv_head) * call.capacity + position];
    const Selection selection = *scratch.selection;
    read = score > selection.threshold ||
           (score == selection.threshold && static_cast<int64_t>(kv_head) * step.old + position <= selection.last);
  }
  uint32_t total_read;
  const uint32_t rank = BlockPrefix<kThreads>(read ? 1u : 0u, shared.counts, total_read);
  if (read) shared.tokens[rank] = position;
  const int count = static_cast<int>(total_read);
  const int64_t partial = (static_cast<int64_t>(kv_head) * gridDim.x + chunk) * gridDim.z * kRows + first_row;

  for (int i = thread; i < kRows * dim; i += kThreads) {
    const int row = i / dim, d = i % dim;
    float value = 0.0f;
    if (row < rows) {
      const int token = (first_row + row) / group, head = kv_head * group + (first_row + row) % group;
      value = Rotated(call, QueryRow(call, token, head), step.past + token, d) * (call.scale * kLog2E);
      if (d == 0) {
        shared.limit[row] = step.past + token + 1;
        shared.begin[row] = call.window > 0 ? step.past + token + 1 - call.window : 0;
      }
    } else if (d == 0) {
      shared.limit[row] = 0;
      shared.begin[row] = 0;
    }
    shared.query[row][d] = value;
  }
  __syncthreads();

  const Element* keys = static_cast<const Element*>(call.key) + static_cast<int64_t>(kv_head) * call.capacity * dim;
  const Element* values = static_cast<const Element*>(call.value) + static_cast<int64_t>(kv_head) * call.capacity * dim;
  const uint16_t* key_scale = call.key_scale + (kInt8 ? static_cast<int64_t>(kv_head) * call.capacity : 0);
  const uint16_t* value_scale = call.value_scale + (kInt8 ? static_cast<int64_t>(kv_head) * call.capacity : 0);
  const int eighth = lane % kLanesAToken;
#pragma unroll(kRows == 4 ? 4 : 2)
  for (int first = 0; first < count; first += kTokensAtOnce) {
    const int index = first + thread / kLanesAToken;
    const int token = shared.tokens[index < count ? index : count - 1];
    const Element* key = keys + static_cast<int64_t>(token) * dim;
    float dots[kRows] = {};
    if (dim % 8 == 0) {
#pragma unroll 2
      for (int d = eighth * 8; d < dim; d += kLanesAToken * 8) {
        float numbers[8];
        LoadEight(key + d, numbers);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const auto* query = reinterpret_cast<const float4*>(&shared.query[r][d]);
          const float4 a = query[0], b = query[1];
          dots[r] += numbers[0] * a.x + numbers[1] * a.y + numbers[2] * a.z + numbers[3] * a.w + numbers[4] * b.x + numbers[5] * b.y +
                     numbers[6] * b.z + numbers[7] * b.w;
        }
      }
    } else {
      for (int d = eighth * 2; d < dim; d += kLanesAToken * 2) {
        float numbers[2];
        LoadPair(key + d, numbers);
#pragma unroll
        for (int r = 0; r < kRows; ++r) dots[r] += numbers[0] * shared.query[r][d] + numbers[1] * shared.query[r][d + 1];
      }
    }
    const float scale = kInt8 ? HalfToFloat(key_scale[token]) : 1.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float dot = dots[r];
#pragma unroll
      for (int by = kLanesAToken / 2; by > 0; by /= 2) dot += __shfl_xor_sync(kAllLanes, dot, by);
      if (eighth == r % kLanesAToken && index < count) {
        const bool seen = token < shared.limit[r] && token >= shared.begin[r];
        shared.scores[r][index] = seen ? Capped(call, dot * scale) : -INFINITY;
      }
    }
  }
  __syncthreads();

  for (int r = warp; r < rows; r += kWarps) {
    float most = -INFINITY, total = 0.0f;
    for (int i = lane; i < count; i += kWarp) most = fmaxf(most, shared.scores[r][i]);
    most = WarpMax(most);
    const float from = most == -INFINITY ? 0.0f : most;
    for (int i = lane; i < count; i += kWarp) {
      const float weight = exp2f(shared.scores[r][i] - from);
      total += weight;
      shared.scores[r][i] = kInt8 ? weight * HalfToFloat(value_scale[shared.tokens[i]]) : weight;
    }
    total = WarpSum(total);
    if (lane == 0) {
      scratch.partial_max[partial + r] = most;
      scratch.partial_sum[partial + r] = total;
    }
  }
  __syncthreads();

  float sums[kRows][kPairs][2] = {};
#pragma unroll 8
  for (int i = warp; i < count; i += kWarps) {
    const Element* value = values + static_cast<int64_t>(shared.tokens[i]) * dim;
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      const int d = (p * kWarp + lane) * 2;
      if (d >= dim) continue;
      float numbers[2];
      LoadPair(value + d, numbers);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        if (r >= rows) break;
        sums[r][p][0] += shared.scores[r][i] * numbers[0];
        sums[r][p][1] += shared.scores[r][i] * numbers[1];
      }
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int p = 0; p < kPairs; ++p) {
      shared.values[warp][r][(p * kWarp + lane) * 2] = sums[r][p][0];
      shared.values[warp][r][(p * kWarp + lane) * 2 + 1] = sums[r][p][1];
    }
  }
  __syncthreads();
  for (int i = thread; i < rows * dim; i += kThreads) {
    const int row = i / dim, d = i % dim;
    float total = 0.0f;
    for (int from = 0; from < kWarps; ++from) total += shared.values[from][row][d];
    scratch.partial_values[(partial + row) * dim + d] = total;
  }
  if (!LastBlock(scratch.counters + 1 + kv_head * gridDim.z + pass, static_cast<uint32_t>(chunks - first_chunk), shared.last)) return;

  // Every chunk's share of a row, in place of its maximum.
  const int64_t base = static_cast<int64_t>(kv_head) * gridDim.x * gridDim.z * kRows + first_row, stride = static_cast<int64_t>(gridDim.z) * kRows;
  for (int r = warp; r < rows; r += kWarps) {
    float most = -INFINITY, total = 0.0f;
    for (int i = first_chunk + lane; i < chunks; i += kWarp) most = fmaxf(most, __ldcg(scratch.partial_max + base + i * stride + r));
    most = WarpMax(most);
    for (int i = first_chunk + lane; i < chunks; i += kWarp) {
      const int64_t at = base + i * stride + r;
      const float factor = exp2f(__ldcg(scratch.partial_max + at) - most);
      total += factor * __ldcg(scratch.partial_sum + at);
      scratch.partial_max[at] = factor;
    }
    total = WarpSum(total);
    if (lane == 0) shared.factor[r] = 1.0f / total;
  }
  __syncthreads();
  for (int i = thread; i < rows * dim; i += kThreads) {
    const int row = i / dim, d = i % dim;
    float total = 0.0f;
#pragma unroll 4
    for (int from = first_chunk; from < chunks; ++from) {
      const int64_t at = base + from * stride + row;
      const float factor = __ldcg(scratch.partial_max + at);
      if (factor != 0.0f) total += factor * __ldcg(scratch.partial_values + at * dim + d);
    }
    output(row)[d] = total * shared.factor[row];
  }
}

template <class Element, int kRows>
void AttendRows(Stream stream, const AttentionCall& call, const AttentionScratch& scratch) {
  const dim3 grid(static_cast<unsigned>(ChunksOf(call)), static_cast<unsigned>(call.kv_heads), static_cast<unsigned>(PassesOf(call)));
  Launch(call.head_dim <= 64    ? ChunkKernel<Element, kRows, 1>
         : call.head_dim <= 128 ? ChunkKernel<Element, kRows, 2>
                                : ChunkKernel<Element, kRows, 4>,
         grid, kThreads, 0, stream, call, scratch);
}

}  // namespace

void AttendChunks(Stream stream, const AttentionCall& call, const AttentionScratch& scratch) {
  const auto attend = RowsAtOnce(call) == 4 ? (call.int8 ? AttendRows<int8_t, 4> : AttendRows<uint16_t, 4>)
                                            : (call.int8 ? AttendRows<int8_t, 8> : AttendRows<uint16_t, 8>);
  attend(stream, call, scratch);
}

}  // namespace sol::cuda
