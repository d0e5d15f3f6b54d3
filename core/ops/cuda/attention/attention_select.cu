// Selection of the old tokens that a decode step reads. H query heads read Hk KV heads.
//
//   weigh     appends the new token. z = softmax_scale log2(e) a (step sum(code c) + m sum(c)) of an old token and query head, from key codes of
//             4 bits and the query's codes c = round(q / a), a = max |q| / 127. weights [H, C] = 2^(z - the highest z of the block of 256 tokens)
//   score     scores [Hk, C] = the sum over the KV head's query heads of the weights' shares of 1, as the bits of floats >= 0
//   select    the lowest score read: 4 Hk kv_pages pairs of KV head and old token are, of equal ones the first
//
// A thread has one old token. A warp codes one query head, its channels dealt to the lanes. The last thread block to score selects.

#include "cuda/attention/attention_cache.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = kBlockTokens;
constexpr int kWarps = kThreads / kWarp;
constexpr int kHeads = kWarps;  // query heads whose codes lie in shared memory at once
constexpr int kWords = kMaxHeadDim / 8;
constexpr float kLowestScore = 0x1p-100f;  // smaller scores are alike: too small to be told from what rounding leaves of them

struct WeighShared {
  AppendShared append;
  uint32_t low[kHeads][kWords], high[kHeads][kWords];  // codes of even channels, of odd ones
  float step[kHeads], sum[kHeads];                     // what codes are multiplied by, in units of log2; the sum of the codes
  float most[kHeads][kWarps], total[kHeads][kWarps];
};

// A warp codes a query head.
__device__ void CodeQuery(const AttentionCall& call, const Step& step, int head, int slot, WeighShared& shared) {
  const int dim = call.head_dim, lane = Lane();
  const float* row = QueryRow(call, 0, head);
  float values[kMaxHeadDim / kWarp];
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < kMaxHeadDim / kWarp; ++i) {
    const int d = lane + i * kWarp;
    values[i] = d < dim ? Rotated(call, row, step.past, d) : 0.0f;
    const uint32_t bits = __float_as_uint(values[i]) & 0x7fffffffu;
    most = most > bits ? most : bits;
  }
  const float a = __uint_as_float(WarpMax(most)) / 127.0f;
  auto* low = reinterpret_cast<int8_t*>(shared.low[slot]);
  auto* high = reinterpret_cast<int8_t*>(shared.high[slot]);
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kMaxHeadDim / kWarp; ++i) {
    const int d = lane + i * kWarp;
    const int code = a == 0.0f ? 0 : __float2int_rn(values[i] / a);
    (d % 2 == 0 ? low : high)[d / 2] = static_cast<int8_t>(code);  // after the last channel zeros
    sum += code;
  }
  sum = WarpSum(sum);
  if (lane == 0) {
    shared.step[slot] = a * call.scale * kLog2E;
    shared.sum[slot] = static_cast<float>(sum);
  }
}

// Eight channels of a token, four bits each.
__device__ __forceinline__ uint32_t CodeWord(const uint8_t* page, int dim, int token, int word) {
  const int whole = dim / 8, rest = dim / 2 - whole * 4;
  if (word < whole) return __ldg(reinterpret_cast<const uint32_t*>(page) + word * kPageSize + token);
  uint32_t codes = 0;
  for (int i = 0; i < rest; ++i) codes |= static_cast<uint32_t>(page[whole * 16 + rest * token + i]) << 8 * i;
  return codes;
}

// A block weighs kBlockTokens old tokens of a KV head, each for all its query heads; the one that the newest page belongs to appends.
template <class Element>
__global__ void __launch_bounds__(kThreads) WeighKernel(AttentionCall call, AttentionScratch scratch, int counters) {
  SOL_SHARED(WeighShared, shared);
  const Step step = ReadStep(call);
  const int thread = static_cast<int>(threadIdx.x), lane = Lane(), warp = WarpOfBlock();
  const int token_block = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), first = token_block * kBlockTokens;
  if (token_block == 0 && kv_head == 0) {
    for (int i = thread; i < kFirstBins; i += kThreads) scratch.bins[i] = 0;
    for (int i = thread; i < counters; i += kThreads) scratch.counters[i] = 0;
  }
  if (!step.valid || first > step.old) return;
  if (step.old < first + kBlockTokens) AppendPage<Element>(call, step, kv_head, step.pages - 1, shared.append);
  if (!step.sparse || first == step.old || first + kBlockTokens <= step.first) return;

  const int dim = call.head_dim, words = (dim + 7) / 8, group = call.group;
  const int token = first + thread;
  const bool there = token < step.old && token >= step.first;
  const int64_t page = static_cast<int64_t>(kv_head) * call.capacity + token / kPageSize * kPageSize;
  const uint8_t* codes = call.key_codes + page * (dim / 2);
  float minimum = 0.0f, unit = 0.0f;
  if (there) {
    minimum = HalfToFloat(call.key_range[page * 2 + token % kPageSize]);
    unit = HalfToFloat(call.key_range[page * 2 + kPageSize + token % kPageSize]);
  }
  for (int done = 0; done < group; done += kHeads) {
    const int count = group - done < kHeads ? group - done : kHeads, head0 = kv_head * group + done;
    if (warp < count) CodeQuery(call, step, head0 + warp, warp, shared);
    __syncthreads();
    int dots[kHeads] = {};
    if (there) {
      for (int word = 0; word < words; ++word) {
        const uint32_t eight = CodeWord(codes, dim, token % kPageSize, word);
#pragma unroll
        for (int h = 0; h < kHeads; ++h) {
          if (h >= count) break;
          dots[h] = DotBytes(eight & 0x0f0f0f0fu, shared.low[h][word], dots[h]);
          dots[h] = DotBytes(eight >> 4 & 0x0f0f0f0fu, shared.high[h][word], dots[h]);
        }
      }
    }
    float logits[kHeads];
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= count) break;
      logits[h] = there ? Capped(call, shared.step[h] * (unit * static_cast<float>(dots[h]) + minimum * shared.sum[h])) : -INFINITY;
      const float most = WarpMax(logits[h]);
      if (lane == 0) shared.most[h][warp] = most;
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < kHeads; ++h) {
      if (h >= count) break;
      float most = shared.most[h][0];
      for (int i = 1; i < kWarps; ++i) most = fmaxf(most, shared.most[h][i]);
      const float weight = there ? exp2f(logits[h] - most) : 0.0f;
      if (there) scratch.weights[static_cast<int64_t>(head0 + h) * call.capacity + token] = weight;
      const float total = WarpSum(weight);
      if (lane == 0) shared.total[h][warp] = total;
      if (thread == 0) scratch.block_max[(head0 + h) * gridDim.x + token_block] = most;
    }
    __syncthreads();
    if (thread < count) {
      float total = 0.0f;
      for (int i = 0; i < kWarps; ++i) total += shared.total[thread][i];
      scratch.block_sum[(head0 + thread) * gridDim.x + token_block] = total;
    }
  }
}

struct ScoreShared {
  float share[kMaxGroup];  // what a head's weights in this block of tokens are multiplied by to add up to 1 over all old tokens
  SelectMemory select;
  uint32_t candidates;
  bool last;
};

// A block scores kBlockTokens old tokens of a KV head; the last one finds the lowest score that is read.
__global__ void __launch_bounds__(kThreads) ScoreKernel(AttentionCall call, AttentionScratch scratch) {
  SOL_SHARED(ScoreShared, shared);
  const Step step = ReadStep(call);
  const int token_block = static_cast<int>(blockIdx.x), kv_head = static_cast<int>(blockIdx.y), first = token_block * kBlockTokens;
  if (!step.valid || !step.sparse || first >= step.old || first + kBlockTokens <= step.first) return;
  const int thread = static_cast<int>(threadIdx.x), group = call.group;
  const int token_blocks = (step.old + kBlockTokens - 1) / kBlockTokens, first_block = step.first / kBlockTokens;
  for (int h = WarpOfBlock(); h < group; h += kWarps) {
    const int64_t head = static_cast<int64_t>(kv_head) * group + h;
    const float* most = scratch.block_max + head * gridDim.x;
    const float* sums = scratch.block_sum + head * gridDim.x;
    float highest = -INFINITY, total = 0.0f;
    for (int i = first_block + Lane(); i < token_blocks; i += kWarp) highest = fmaxf(highest, most[i]);
    highest = WarpMax(highest);
    for (int i = first_block + Lane(); i < token_blocks; i += kWarp) total += sums[i] * exp2f(most[i] - highest);
    total = WarpSum(total);
    if (Lane() == 0) shared.share[h] = exp2f(most[token_block] - highest) / total;
  }
  for (int i = thread; i < kFirstBins; i += kThreads) shared.select.bins[i] = 0;
  __syncthreads();
  const int token = first + thread;
  if (token < step.old && token >= step.first) {
    float score = 0.0f;
    for (int h = 0; h < group; ++h) {
      score += scratch.weights[(static_cast<int64_t>(kv_head) * group + h) * call.capacity + token] * shared.share[h];
    }
    const uint32_t bits = score >= kLowestScore ? __float_as_uint(score) : 0u;  // what is not a number counts as 0, too
    scratch.scores[static_cast<int64_t>(kv_head) * call.capacity + token] = bits;
    atomicAdd(&shared.select.bins[bits >> kFirstShift], 1u);
  }
  __syncthreads();
  for (int i = thread; i < kFirstBins; i += kThreads) {
    if (shared.select.bins[i] != 0) atomicAdd(&scratch.bins[i], shared.select.bins[i]);
  }
  if (!LastBlock(scratch.counters, static_cast<uint32_t>((token_blocks - first_block) * call.kv_heads), shared.last)) return;

  const uint32_t wanted = static_cast<uint32_t>(step.kv_pages) * kPageSize * static_cast<uint32_t>(call.kv_heads);
  if (wanted == 0) {
    if (thread == 0) *scratch.selection = {0xffffffffu, -1};
    return;
  }
  for (int i = thread; i < kFirstBins; i += kThreads) shared.select.bins[i] = __ldcg(&scratch.bins[i]);
  if (thread == 0) shared.candidates = 0;
  __syncthreads();
  FindBin<kThreads>(kFirstBins, wanted, shared.select);
  const uint32_t bin = shared.select.bin, left = wanted - shared.select.above;
  // Four at once: one block reads what all have written.
  const int first_four = step.first / 4, fours = step.old / 4 - first_four;
#pragma unroll 4
  for (int i = thread; i < call.kv_heads * fours; i += kThreads) {
    const int head = i / fours, token = (first_four + i % fours) * 4;
    const uint4 loaded = __ldcg(reinterpret_cast<const uint4*>(scratch.scores + static_cast<int64_t>(head) * call.capacity + token));
    const uint32_t four[4] = {loaded.x, loaded.y, loaded.z, loaded.w};
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if (four[j] >> kFirstShift != bin || token + j < step.first) continue;
      const uint32_t at = atomicAdd(&shared.candidates, 1u);  // in any order: they are only counted
      scratch.candidates[at] = four[j];
      scratch.places[at] = static_cast<uint32_t>(head * step.old + token + j);
    }
  }
  __syncthreads();
  const int64_t count = shared.candidates;
  const auto score = [&](int64_t i, uint32_t& key) {
    key = scratch.candidates[i];
    return true;
  };
  const Selected lowest = SelectLargest<kThreads>(count, left, score, shared.select);
  int64_t last = int64_t{1} << 40;
  if (left - lowest.above < lowest.equal) {
    const auto place = [&](int64_t i, uint32_t& key) {
      key = 0x7fffffffu - scratch.places[i];
      return scratch.candidates[i] == lowest.key;
    };
    last = 0x7fffffffu - SelectLargest<kThreads>(count, left - lowest.above, place, shared.select).key;
  }
  if (thread == 0) *scratch.selection = {lowest.key, last};
}

// Many new tokens: a block a page.
template <class Element>
__global__ void __launch_bounds__(kThreads) AppendKernel(AttentionCall call, AttentionScratch scratch, int counters) {
  SOL_SHARED(AppendShared, shared);
  const Step step = ReadStep(call);
  if (blockIdx.x == 0 && blockIdx.y == 0) {
    for (int i = static_cast<int>(threadIdx.x); i < counters; i += kThreads) scratch.counters[i] = 0;
  }
  const int page = step.past / kPageSize + static_cast<int>(blockIdx.x);
  if (!step.valid || page >= step.pages) return;
  AppendPage<Element>(call, step, static_cast<int>(blockIdx.y), page, shared);
}

}  // namespace

void SelectTokens(Stream stream, const AttentionCall& call, const AttentionScratch& scratch) {
  const dim3 grid(static_cast<unsigned>(TokenBlocksOf(call)), static_cast<unsigned>(call.kv_heads));
  const int counters = 1 + call.kv_heads * PassesOf(call);
  Launch(call.int8 ? WeighKernel<int8_t> : WeighKernel<uint16_t>, grid, kThreads, 0, stream, call, scratch, counters);
  if (call.capacity > kPageSize) Launch(ScoreKernel, grid, kThreads, 0, stream, call, scratch);
}

void AppendTokens(Stream stream, const AttentionCall& call, const AttentionScratch& scratch) {
  const dim3 grid(static_cast<unsigned>(DivideUp(call.tokens, kPageSize) + 1), static_cast<unsigned>(call.kv_heads));
  const int counters = scratch.counters == nullptr ? 0 : 1 + call.kv_heads * PassesOf(call);
  Launch(call.int8 ? AppendKernel<int8_t> : AppendKernel<uint16_t>, grid, kThreads, 0, stream, call, scratch, counters);
}

}  // namespace sol::cuda
