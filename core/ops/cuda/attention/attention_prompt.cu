// Causal attention of many new tokens by the matrix instruction m16n8k16 of float16: y = softmax(softmax_scale q k) v, a query at position p
// seeing keys 0 … p, or the last `window` of these.
//
// A warp has 16 queries of a head, q [16, D], and goes over the keys [T, D] in tiles of 16 or 32, its sums [16, D] in registers. Softmax goes
// along: each tile brings the sums to its new maximum. A lane has queries lane / 4 and lane / 4 + 8, and of each eight columns two.
//
// Queries and weights are float32 numbers: each is multiplied as the sum of two of float16, so that only products of what both leave are
// lost, 2^-22 of the largest. Keys, values and codes of 8 bits are float16 as they are; scales of an int8 cache are applied in float32.

#include "cuda/attention/attention_cache.h"

namespace sol::cuda {
namespace {

constexpr int kRows = 16, kColumns = 8, kDepth = 16;  // of the instruction
constexpr float kWeightShift = 10.0f;                 // weights are up to 2^10: small ones stay clear of float16's smallest

// kDim: room for a head.
template <int kDim>
struct PromptSizes {
  static constexpr int kWarps = kDim > 128 ? 2 : 4;
  static constexpr int kThreads = kWarps * kWarp;
  static constexpr int kQueries = kWarps * kRows;
  static constexpr int kKeys = kDim > 128 ? 16 : 32;
  // Words of two numbers; four more than a multiple of 32 or 16, so that eight rows begin in different banks.
  static constexpr int kPitch = kDim / 2 + 4;
  static constexpr int kValuePitch = kKeys / 2 + 4;
  static constexpr int kTileWords = kKeys * kPitch > kDim * kValuePitch ? kKeys * kPitch : kDim * kValuePitch;
};
template <int kDim>
struct PromptShared {
  using Sizes = PromptSizes<kDim>;
  uint32_t query[2][Sizes::kQueries][Sizes::kPitch];  // what float16 holds of a row, and of what that leaves
  uint32_t tile[Sizes::kTileWords];                   // keys [kKeys][kPitch], then values [kDim][kValuePitch], two keys a word
  float row_scale[Sizes::kQueries];
  float key_scale[Sizes::kKeys], value_scale[Sizes::kKeys];
};

__device__ __forceinline__ uint32_t Pack(uint16_t low, uint16_t high) { return low | static_cast<uint32_t>(high) << 16; }

// Two neighbouring numbers of the cache as a word of float16.
__device__ __forceinline__ uint32_t LoadWord(const uint16_t* from) { return __ldg(reinterpret_cast<const uint32_t*>(from)); }
__device__ __forceinline__ uint32_t LoadWord(const int8_t* from) {
  const uint16_t codes = __ldg(reinterpret_cast<const uint16_t*>(from));
  return Pack(HalfFromFloat(static_cast<float>(static_cast<int8_t>(codes))), HalfFromFloat(static_cast<float>(static_cast<int8_t>(codes >> 8))));
}

// Two numbers as words of float16: what it holds of them, and of the rest.
__device__ __forceinline__ void Split(float a, float b, uint32_t& most, uint32_t& rest) {
  const uint16_t high_a = HalfFromFloat(a), high_b = HalfFromFloat(b);
  most = Pack(high_a, high_b);
  rest = Pack(HalfFromFloat(a - HalfToFloat(high_a)), HalfFromFloat(b - HalfToFloat(high_b)));
}

template <class Element, int kDim>
__global__ void __launch_bounds__(PromptSizes<kDim>::kThreads, kDim > 128 ? 1 : 3) PromptKernel(AttentionCall call) {
  using Sizes = PromptSizes<kDim>;
  using Shared = PromptShared<kDim>;
  constexpr int kKeys = Sizes::kKeys, kPitch = Sizes::kPitch, kValuePitch = Sizes::kValuePitch, kThreads = Sizes::kThreads;
  constexpr bool kInt8 = sizeof(Element) == 1;
  SOL_SHARED(Shared, shared);
  const Step step = ReadStep(call);
  const int thread = static_cast<int>(threadIdx.x), lane = Lane(), warp = WarpOfBlock(), group = lane / 4, member = lane % 4;
  const int dim = call.head_dim, head = static_cast<int>(blockIdx.y), kv_head = head / call.group;
  const int first = static_cast<int>(gridDim.x - 1 - blockIdx.x) * Sizes::kQueries;  // late queries see more keys: the longest work goes first
  const int queries = call.tokens - first < Sizes::kQueries ? call.tokens - first : Sizes::kQueries;
  float* y = call.y + (static_cast<int64_t>(first) * call.heads + head) * dim;
  const int64_t y_pitch = static_cast<int64_t>(call.heads) * dim;
  if (!step.valid) {
    for (int i = thread; i < queries * dim; i += kThreads) y[i / dim * y_pitch + i % dim] = __uint_as_float(0x7fc00000u);
    return;
  }

  // A row's largest number becomes 1: float16 holds any row then.
  for (int r = 0; r < kRows; ++r) {
    const int q = warp * kRows + r;
    float numbers[kDim / kWarp];
    float most = 0.0f;
#pragma unroll
    for (int i = 0; i < kDim / kWarp / 2; ++i) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int d = (i * kWarp + lane) * 2 + j;
        const float number = q < queries && d < dim ? Rotated(call, QueryRow(call, first + q, head), step.past + first + q, d) : 0.0f;
        numbers[2 * i + j] = number;
        most = fmaxf(most, fabsf(number));
      }
    }
    most = WarpMax(most);
    const float by = most > 0.0f ? 1.0f / most : 1.0f;
#pragma unroll
    for (int i = 0; i < kDim / kWarp / 2; ++i) {
      const int word = i * kWarp + lane;
      Split(numbers[2 * i] * by, numbers[2 * i + 1] * by, shared.query[0][q][word], shared.query[1][q][word]);
    }
    if (lane == 0) shared.row_scale[q] = (most > 0.0f ? most : 1.0f) * call.scale * kLog2E;
  }
  __syncwarp();

  const int64_t offset = static_cast<int64_t>(kv_head) * call.capacity;
  const Element* keys = static_cast<const Element*>(call.key) + offset * dim;
  const Element* values = static_cast<const Element*>(call.value) + offset * dim;
  const int end = step.past + first + queries;
  const int row0 = warp * kRows + group;  // a lane's rows are this one and the eighth after it
  const float row_scale[2] = {shared.row_scale[row0], shared.row_scale[row0 + 8]};
  float sums[kDim / kColumns][4] = {};
  float most[2] = {-INFINITY, -INFINITY}, total[2] = {};
  float unit = 0.0f;  // of int8 values: the largest scale so far, what sums count in

  const int begin = call.window > 0 && step.past + first >= call.window ? (step.past + first + 1 - call.window) / kKeys * kKeys : 0;
  for (int key0 = begin; key0 < end; key0 += kKeys) {
    __syncthreads();
#pragma unroll 4
    for (int i = thread; i < kKeys * kDim / 2; i += kThreads) {
      const int key = i / (kDim / 2), word = i % (kDim / 2), position = key0 + key;
      shared.tile[key * kPitch + word] =
          position < end && 2 * word < dim ? LoadWord(keys + static_cast<int64_t>(position) * dim + 2 * word) : 0u;
    }
    if (kInt8 && thread < kKeys) {
      const bool there = key0 + thread < end;
      shared.key_scale[thread] = there ? HalfToFloat(call.key_scale[offset + key0 + thread]) : 0.0f;
      shared.value_scale[thread] = there ? HalfToFloat(call.value_scale[offset + key0 + thread]) : 0.0f;
    }
    __syncthreads();

    float scores[kKeys / kColumns][4] = {};
#pragma unroll
    for (int k = 0; k < kDim / kDepth; ++k) {
      if (k * kDepth >= dim) break;
      uint32_t a[2][4];
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int word = k * kDepth / 2 + member;
        a[p][0] = shared.query[p][row0][word];
        a[p][1] = shared.query[p][row0 + 8][word];
        a[p][2] = shared.query[p][row0][word + 4];
        a[p][3] = shared.query[p][row0 + 8][word + 4];
      }
#pragma unroll
      for (int n = 0; n < kKeys / kColumns; ++n) {
        const uint32_t* key = shared.tile + (n * kColumns + group) * kPitch + k * kDepth / 2 + member;
        const uint32_t b[2] = {key[0], key[4]};
        MultiplyHalves(scores[n], a[1], b);
        MultiplyHalves(scores[n], a[0], b);
      }
    }
    __syncthreads();
    // Values take the keys' place: two keys of a channel a word. Eight lanes read side by side, four of them write to different banks.
#pragma unroll 2
    for (int i = thread; i < kKeys / 2 * kDim / 2; i += kThreads) {
      const int within = i % 32, block = i / 32;
      const int pair = block / (kDim / 16) * 4 + within / 8, word = block % (kDim / 16) * 8 + within % 8;
      const int position = key0 + 2 * pair;
      const Element* from = values + static_cast<int64_t>(position) * dim + 2 * word;
      const uint32_t a = position < end && 2 * word < dim ? LoadWord(from) : 0u;
      const uint32_t b = position + 1 < end && 2 * word < dim ? LoadWord(from + dim) : 0u;
      shared.tile[2 * word * kValuePitch + pair] = __byte_perm(a, b, 0x5410);
      shared.tile[(2 * word + 1) * kValuePitch + pair] = __byte_perm(a, b, 0x7632);
    }

    float factor[2], highest[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int seen = step.past + first + row0 + 8 * r;  // the last position that the row sees
      highest[r] = most[r];
#pragma unroll
      for (int n = 0; n < kKeys / kColumns; ++n) {
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const int key = n * kColumns + 2 * member + j;
          float& score = scores[n][2 * r + j];
          score *= kInt8 ? row_scale[r] * shared.key_scale[key] : row_scale[r];
          score = Capped(call, score);
          if (key0 + key > seen || (call.window > 0 && key0 + key <= seen - call.window)) score = -INFINITY;
          highest[r] = fmaxf(highest[r], score);
        }
      }
#pragma unroll
      for (int by = 1; by < 4; by *= 2) highest[r] = fmaxf(highest[r], __shfl_xor_sync(kAllLanes, highest[r], by));
      const float from = highest[r] == -INFINITY ? 0.0f : highest[r];
      factor[r] = exp2f(most[r] - from);
      total[r] *= factor[r];
      most[r] = highest[r];
      highest[r] = from - kWeightShift;
    }
    float value_unit = 1.0f;
    if constexpr (kInt8) {
      float largest = WarpMax(lane < kKeys ? shared.value_scale[lane] : 0.0f);
      largest = fmaxf(largest, unit);
      if (largest > 0.0f) {
        factor[0] *= unit / largest;
        factor[1] *= unit / largest;
        value_unit = 1.0f / largest;
      }
      unit = largest;
    }
    uint32_t weights[2][kKeys / kColumns][2];  // of both parts: rows, in the order of the instruction's second operand's depth
#pragma unroll
    for (int n = 0; n < kKeys / kColumns; ++n) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float two[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          two[j] = exp2f(scores[n][2 * r + j] - highest[r]);
          total[r] += two[j];
          if (kInt8) two[j] *= shared.value_scale[n * kColumns + 2 * member + j] * value_unit;
        }
        Split(two[0], two[1], weights[0][n][r], weights[1][n][r]);
      }
    }
#pragma unroll
    for (int n = 0; n < kDim / kColumns; ++n) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sums[n][i] *= factor[i / 2];
    }
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kKeys / kDepth; ++k) {
      const uint32_t rest[4] = {weights[1][2 * k][0], weights[1][2 * k][1], weights[1][2 * k + 1][0], weights[1][2 * k + 1][1]};
      const uint32_t main[4] = {weights[0][2 * k][0], weights[0][2 * k][1], weights[0][2 * k + 1][0], weights[0][2 * k + 1][1]};
#pragma unroll
      for (int n = 0; n < kDim / kColumns; ++n) {
        if (n * kColumns >= dim) break;
        const uint32_t* value = shared.tile + (n * kColumns + group) * kValuePitch + k * kDepth / 2 + member;
        const uint32_t b[2] = {value[0], value[4]};
        MultiplyHalves(sums[n], rest, b);
        MultiplyHalves(sums[n], main, b);
      }
    }
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int by = 1; by < 4; by *= 2) total[r] += __shfl_xor_sync(kAllLanes, total[r], by);
    const float by = (kInt8 ? unit : 1.0f) / total[r];
    const int q = row0 + 8 * r;
    if (q >= queries) continue;
#pragma unroll
    for (int n = 0; n < kDim / kColumns; ++n) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const int d = n * kColumns + 2 * member + j;
        if (d < dim) y[q * y_pitch + d] = sums[n][2 * r + j] * by;
      }
    }
  }
}

template <class Element, int kDim>
void AttendPromptIn(Stream stream, const AttentionCall& call) {
  using Sizes = PromptSizes<kDim>;
  const dim3 grid(static_cast<unsigned>(DivideUp(call.tokens, Sizes::kQueries)), static_cast<unsigned>(call.heads));
  Launch(PromptKernel<Element, kDim>, grid, Sizes::kThreads, 0, stream, call);
}

template <class Element>
void AttendPromptOf(Stream stream, const AttentionCall& call) {
  (call.head_dim <= 64    ? AttendPromptIn<Element, 64>
   : call.head_dim <= 128 ? AttendPromptIn<Element, 128>
                          : AttendPromptIn<Element, 256>)(stream, call);
}

}  // namespace

void AttendPrompt(Stream stream, const AttentionCall& call) {
  (call.int8 ? AttendPromptOf<int8_t> : AttendPromptOf<uint16_t>)(stream, call);
}

}  // namespace sol::cuda
