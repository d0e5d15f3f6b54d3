// SparseAttention: rotary embedding, in-place append to the float16 cache, page summaries, page selection, attention.
// docs/bundle.md section 3 is its specification.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "sparse_attention.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>
// After foreach_target.h.
#include "attention_append-inl.h"
#include "attention_decode-inl.h"
#include "attention_prefill-inl.h"

#if HWY_ONCE

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <string>

#include "op.h"
#include "target.h"

namespace sol {
namespace {

struct Kernels {
  decltype(&HWY_STATIC_DISPATCH(AppendPage)) append_page = SOL_BEST_TARGET(AppendPage);
  decltype(&HWY_STATIC_DISPATCH(PrepareQueries)) prepare_queries = SOL_BEST_TARGET(PrepareQueries);
  decltype(&HWY_STATIC_DISPATCH(ScorePages)) score_pages = SOL_BEST_TARGET(ScorePages);
  decltype(&HWY_STATIC_DISPATCH(SelectPages)) select_pages = SOL_BEST_TARGET(SelectPages);
  decltype(&HWY_STATIC_DISPATCH(DecodeChunk)) decode_chunk = SOL_BEST_TARGET(DecodeChunk);
  decltype(&HWY_STATIC_DISPATCH(CombineChunks)) combine_chunks = SOL_BEST_TARGET(CombineChunks);
  decltype(&HWY_STATIC_DISPATCH(PrefillPositions)) prefill_positions = SOL_BEST_TARGET(PrefillPositions);
  decltype(&HWY_STATIC_DISPATCH(PrefillScratchFloats)) prefill_scratch_floats = SOL_BEST_TARGET(PrefillScratchFloats);
  decltype(&HWY_STATIC_DISPATCH(PrefillStateFloats)) prefill_state_floats = SOL_BEST_TARGET(PrefillStateFloats);
  decltype(&HWY_STATIC_DISPATCH(PrefillBlock)) prefill_block = SOL_BEST_TARGET(PrefillBlock);
  decltype(&HWY_STATIC_DISPATCH(CombineSplits)) combine_splits = SOL_BEST_TARGET(CombineSplits);
};

const Kernels& Best() {
  static const Kernels kernels;
  return kernels;
}

// Old pages scored by one task; a multiple of 4.
constexpr int64_t kScoredPages = 128;
// Below this many bytes of keys and values, waking a second thread costs more than it saves.
constexpr int64_t kParallelBytes = 96 * 1024;
// Fetched from memory while the step's queries are rotated.
constexpr int64_t kEarlyBytes = 64 * 1024;
// Decode tasks to cut a step into, where chunks do not get too small or too large.
constexpr int64_t kDecodeTasks = 16;
constexpr int64_t kMinChunkPages = 4;
// Prefill tasks wanted: where queries are few, keys are split as well, into shares of at least so many.
constexpr int64_t kPrefillTasks = 8;
constexpr int64_t kMinSplitKeys = 512;

// Slices of one block of memory, each aligned for vectors.
class Slices {
 public:
  explicit Slices(char* base) : base_(base) {}
  template <class T>
  T* Take(int64_t count) {
    T* slice = reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<size_t>(RoundUp(count * static_cast<int64_t>(sizeof(T)), 64));
    return slice;
  }
  size_t Used() const { return used_; }

 private:
  char* base_;
  size_t used_ = 0;
};

void PlaceArrays(const AttentionCall& call, Slices& slices, DecodePlan& plan) {
  const int64_t parts = call.kv_heads * plan.chunks * call.group;
  plan.query = slices.Take<float>(call.heads * plan.padded_dim);
  plan.partial_max = slices.Take<float>(parts);
  plan.partial_sum = slices.Take<float>(parts);
  plan.partial_values = slices.Take<float>(parts * plan.padded_dim);
  plan.pending = slices.Take<std::atomic<int32_t>>(call.kv_heads);
  if (!plan.sparse) return;
  plan.query_upper = slices.Take<float>(call.heads * plan.padded_dim);
  plan.query_lower = slices.Take<float>(call.heads * plan.padded_dim);
  plan.page_scores = slices.Take<int32_t>(call.kv_heads * plan.score_stride);
  plan.page_start = slices.Take<int32_t>(call.kv_heads * (plan.max_pages + kMaxLanes));
  plan.page_count = slices.Take<int32_t>(call.kv_heads * (plan.max_pages + kMaxLanes));
  plan.listed = slices.Take<int32_t>(call.kv_heads);
}

DecodePlan MakePlan(const AttentionCall& call, Buffer& memory) {
  DecodePlan plan{};
  plan.sparse = call.keep < call.pages - 1;
  plan.padded_dim = RoundUp(call.head_dim, kMaxLanes);
  plan.max_pages = plan.sparse ? std::min(call.pages, call.keep + 1 + DivideUp(std::min(call.sinks, call.total), kPageSize)) : call.pages;
  plan.chunk_pages = std::clamp(DivideUp(plan.max_pages * call.kv_heads, kDecodeTasks), kMinChunkPages, kMaxChunkPages);
  plan.chunks = DivideUp(plan.max_pages, plan.chunk_pages);
  // Four scores are stored at a time, and whole vectors are read.
  plan.score_stride = RoundUp(call.pages, kMaxLanes);
  Slices sizes(nullptr);
  PlaceArrays(call, sizes, plan);
  Slices slices(memory.Get<char>(sizes.Used()));
  PlaceArrays(call, slices, plan);
  return plan;
}

// f(kv_head, i) for i in 0 … count - 1 of every KV head, and then, where the last of a head has ended, done(kv_head).
template <class F, class Done>
void ForEachPart(const Context& context, const AttentionCall& call, const DecodePlan& plan, bool parallel, int64_t count, F&& f, Done&& done) {
  if (!parallel) {
    for (int64_t head = 0; head < call.kv_heads; ++head) {
      for (int64_t i = 0; i < count; ++i) f(head, i);
      done(head);
    }
    return;
  }
  for (int64_t head = 0; head < call.kv_heads; ++head) new (plan.pending + head) std::atomic<int32_t>(static_cast<int32_t>(count));
  context.ParallelFor(static_cast<size_t>(call.kv_heads * count), [&](size_t task) {
    const int64_t head = static_cast<int64_t>(task) / count;
    f(head, static_cast<int64_t>(task) % count);
    if (plan.pending[head].fetch_sub(1, std::memory_order_acq_rel) == 1) done(head);
  });
}

// Asks for what a step reads first.
void FetchEarly(const AttentionCall& call, bool sparse) {
  const int64_t row = call.RowBytes();
  const int64_t newest = (call.pages - 1) * kPageSize;
  const int64_t half = call.rotary_dim / 2;
  PrefetchBytes(call.cos + call.past * half, half * static_cast<int64_t>(sizeof(float)));
  PrefetchBytes(call.sin + call.past * half, half * static_cast<int64_t>(sizeof(float)));
  for (int64_t head = 0; head < call.kv_heads; ++head) PrefetchBytes(call.KeyRow(head, newest), (call.total - newest) * row);
  const int64_t rows = std::min(kEarlyBytes / (2 * call.kv_heads * row), sparse ? call.pages - 1 : newest);
  for (int64_t head = 0; head < call.kv_heads; ++head) {
    const int64_t summaries = call.SummaryOffset(head, 0);
    PrefetchBytes(sparse ? call.page_min + summaries : call.KeyRow(head, 0), rows * row);
    PrefetchBytes(sparse ? call.page_max + summaries : call.ValueRow(head, 0), rows * row);
  }
}

void Decode(const Context& context, const AttentionCall& call) {
  thread_local Buffer memory;
  const Kernels& best = Best();
  const DecodePlan plan = MakePlan(call, memory);
  FetchEarly(call, plan.sparse);
  for (int64_t head = 0; head < call.kv_heads; ++head) best.append_page(call, head, call.pages - 1);
  best.prepare_queries(call, plan);
  const int64_t row_bytes = call.kv_heads * call.head_dim * 4;
  if (plan.sparse) {
    const int64_t old_pages = call.pages - 1;
    ForEachPart(
        context, call, plan, old_pages * row_bytes >= kParallelBytes, DivideUp(old_pages, kScoredPages),
        [&](int64_t head, int64_t i) {
          best.score_pages(call, plan, head, i * kScoredPages, std::min(old_pages, (i + 1) * kScoredPages));
        },
        [&](int64_t head) { best.select_pages(call, plan, head); });
  }
  ForEachPart(
      context, call, plan, plan.max_pages * kPageSize * row_bytes >= kParallelBytes, plan.chunks,
      [&](int64_t head, int64_t chunk) { best.decode_chunk(call, plan, head, chunk); },
      [&](int64_t head) { best.combine_chunks(call, plan, head); });
}

void Prefill(const Context& context, const AttentionCall& call) {
  const Kernels& best = Best();
  const int64_t first_page = call.past / kPageSize;
  const int64_t touched = call.pages - first_page;
  context.ParallelFor(static_cast<size_t>(call.kv_heads * touched), [&](size_t task) {
    best.append_page(call, static_cast<int64_t>(task) / touched, first_page + static_cast<int64_t>(task) % touched);
  });
  const int64_t blocks = DivideUp(call.tokens, best.prefill_positions(call));
  const int64_t groups = call.kv_heads * blocks;
  const int64_t splits = std::clamp(call.total / kMinSplitKeys, int64_t{1}, DivideUp(kPrefillTasks, groups));
  const int64_t scratch_floats = RoundUp(best.prefill_scratch_floats(call), kMaxLanes);
  const int64_t state_floats = best.prefill_state_floats(call);
  const bool shared = splits > 1;
  thread_local Buffer memory;
  float* states = nullptr;
  std::atomic<int32_t>* pending = nullptr;
  if (shared) {
    const int64_t count = RoundUp(groups * splits * state_floats, kMaxLanes);
    states = memory.Get<float>(static_cast<size_t>(count + groups));
    pending = reinterpret_cast<std::atomic<int32_t>*>(states + count);
    for (int64_t i = 0; i < groups; ++i) new (pending + i) std::atomic<int32_t>(static_cast<int32_t>(splits));
  }
  std::atomic<bool> out_of_memory{false};
  context.ParallelFor(static_cast<size_t>(groups * splits), [&](size_t task) {
    thread_local Buffer task_memory;
    const int64_t group = static_cast<int64_t>(task) / splits;
    const int64_t split = static_cast<int64_t>(task) % splits;
    const int64_t kv_head = group % call.kv_heads;
    // Late blocks attend more keys: the longest tasks go first.
    const int64_t block = blocks - 1 - group / call.kv_heads;
    try {
      float* scratch = task_memory.Get<float>(static_cast<size_t>(scratch_floats + state_floats));
      float* state = shared ? states + (group * splits + split) * state_floats : scratch + scratch_floats;
      best.prefill_block(call, kv_head, block, split, splits, scratch, state);
    } catch (const std::bad_alloc&) {
      out_of_memory = true;
    }
    if (shared && pending[group].fetch_sub(1, std::memory_order_acq_rel) == 1 && !out_of_memory) {
      best.combine_splits(call, kv_head, block, splits, states + group * splits * state_floats);
    }
  });
  if (out_of_memory) throw Error("SparseAttention: out of memory; use a shorter prompt chunk");
}

}  // namespace

class SparseAttention {
 public:
  static constexpr const char* kName = "SparseAttention";
  static constexpr std::array<Port, 9> kInputs{{{"qkv", kFloat},
                                                {"past_key", kFloat16},
                                                {"past_value", kFloat16},
                                                {"past_page_min", kFloat16},
                                                {"past_page_max", kFloat16},
                                                {"past_length", kInt64},
                                                {"attn_keep", kInt64},
                                                {"cos", kFloat},
                                                {"sin", kFloat}}};
  static constexpr std::array<Port, 5> kOutputs{
      {{"y", kFloat}, {"present_key", kFloat16}, {"present_value", kFloat16}, {"present_page_min", kFloat16}, {"present_page_max", kFloat16}}};

  explicit SparseAttention(const Attributes& attributes) {
    sizes_.heads = attributes.Int("num_heads", 1, 1024);
    sizes_.kv_heads = attributes.Int("kv_heads", 1, sizes_.heads);
    sizes_.group = sizes_.heads / sizes_.kv_heads;
    sizes_.head_dim = attributes.Int("head_dim", 2, kMaxHeadDim);
    sizes_.rotary_dim = attributes.Int("rotary_dim", 0, sizes_.head_dim);
    attributes.Int("page_size", kPageSize, kPageSize);
    sizes_.sinks = attributes.Int("sinks", 0, kMaxCapacity);
    sizes_.scale = attributes.Float("softmax_scale");
    const auto refuse = [](const std::string& what) { throw Error("SparseAttention: " + what + "; export the bundle again"); };
    if (sizes_.heads % sizes_.kv_heads != 0 || sizes_.group > kMaxGroup) {
      refuse("attribute num_heads: got " + std::to_string(sizes_.heads) + ", expected a multiple of kv_heads " +
             std::to_string(sizes_.kv_heads) + ", at most " + std::to_string(kMaxGroup) + " times it");
    }
    if (sizes_.head_dim % 2 != 0) refuse("attribute head_dim: got " + std::to_string(sizes_.head_dim) + ", expected an even number");
    if (sizes_.rotary_dim % 2 != 0) refuse("attribute rotary_dim: got " + std::to_string(sizes_.rotary_dim) + ", expected an even number");
    if (!std::isfinite(sizes_.scale)) refuse("attribute softmax_scale: got a non-finite number");
  }

  void Compute(Context& context) const {
    AttentionCall call = sizes_;
    const Tensor qkv = context.Input(0);
    const int64_t dim = call.head_dim;
    Expect(kName, "qkv", qkv, kFloat, {1, -1, (call.heads + 2 * call.kv_heads) * dim});
    const Tensor key = context.Input(1), value = context.Input(2), low = context.Input(3), high = context.Input(4);
    Expect(kName, "past_key", key, kFloat16, {1, call.kv_heads, -1, dim});
    call.capacity = key.dims[2];
    if (call.capacity % kPageSize != 0 || call.capacity > kMaxCapacity) {
      throw Error("SparseAttention: input past_key: got capacity " + std::to_string(call.capacity) + ", expected a multiple of " +
                  std::to_string(kPageSize) + " up to " + std::to_string(kMaxCapacity));
    }
    Expect(kName, "past_value", value, kFloat16, {1, call.kv_heads, call.capacity, dim});
    Expect(kName, "past_page_min", low, kFloat16, {1, call.kv_heads, call.capacity / kPageSize, dim});
    Expect(kName, "past_page_max", high, kFloat16, {1, call.kv_heads, call.capacity / kPageSize, dim});
    const Tensor past_length = context.Input(5), attn_keep = context.Input(6), cos = context.Input(7), sin = context.Input(8);
    Expect(kName, "past_length", past_length, kInt64, {1});
    Expect(kName, "attn_keep", attn_keep, kInt64, {1});
    Expect(kName, "cos", cos, kFloat, {-1, call.rotary_dim / 2});
    Expect(kName, "sin", sin, kFloat, {cos.dims[0], call.rotary_dim / 2});

    call.tokens = qkv.dims[1];
    call.past = *past_length.As<int64_t>();
    call.keep = *attn_keep.As<int64_t>();
    if (call.tokens < 1) throw Error("SparseAttention: input qkv: got no token, expected at least 1");
    if (call.past < 0 || call.past > call.capacity - call.tokens) {
      throw Error("SparseAttention: input past_length: got " + std::to_string(call.past) + " with " + std::to_string(call.tokens) +
                  " new tokens, expected 0 to the capacity " + std::to_string(call.capacity) + " less the new tokens; enlarge the cache");
    }
    call.total = call.past + call.tokens;
    call.pages = DivideUp(call.total, kPageSize);
    if (cos.dims[0] < call.total) {
      throw Error("SparseAttention: input cos: got " + std::to_string(cos.dims[0]) + " positions, expected at least " +
                  std::to_string(call.total) + "; the context is longer than the model's");
    }
    if (call.keep < 0) throw Error("SparseAttention: input attn_keep: got " + std::to_string(call.keep) + ", expected 0 or more");

    call.qkv = qkv.As<float>();
    call.cos = cos.As<float>();
    call.sin = sin.As<float>();
    call.y = context.Output<float>(0, {1, call.tokens, call.heads * dim});
    call.key = Present(context, 1, key);
    call.value = Present(context, 2, value);
    call.page_min = Present(context, 3, low);
    call.page_max = Present(context, 4, high);
    if (call.tokens == 1) {
      Decode(context, call);
    } else {
      Prefill(context, call);
    }
  }

 private:
  static constexpr int64_t kMaxCapacity = int64_t{1} << 30;  // positions are counted in 32 bits

  // The output that continues a cache input: the same memory where the caller bound it so, else a copy.
  static hwy::float16_t* Present(const Context& context, size_t index, const Tensor& past) {
    auto* present = context.Output<hwy::float16_t>(index, past.dims.data(), past.rank);
    if (present != past.data) std::memcpy(present, past.data, static_cast<size_t>(past.Elements()) * sizeof(hwy::float16_t));
    return present;
  }

  AttentionCall sizes_{};
};

const OrtCustomOp* SparseAttentionOp() { return Define<SparseAttention>(); }

}  // namespace sol

#endif  // HWY_ONCE
