#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <new>
#include <string>

#include "attention_kernels.h"

namespace sol {
namespace {

constexpr int64_t kMaxCapacity = int64_t{1} << 30;  // positions are counted in 32 bits

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

// The output that continues a cache input: the same memory where the caller bound it so, else a copy.
hwy::float16_t* Present(const Context& context, size_t index, const Tensor& past) {
  auto* present = context.Output<hwy::float16_t>(index, past.dims.data(), past.rank);
  if (present != past.data) std::memcpy(present, past.data, static_cast<size_t>(past.Elements()) * sizeof(hwy::float16_t));
  return present;
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

// Of one KV head, where pages are selected.
int64_t ScoreTasks(const AttentionCall& call) { return DivideUp(call.pages - 1, kScoredPages); }

// A phase of f(kv_head, i) for i in 0 … count - 1 of every KV head; where the last of a head has ended, done(kv_head).
template <class Prepare, class F, class Done>
void ForEachPart(Member& member, const AttentionCall& call, std::atomic<int32_t>* pending, int64_t count, const Prepare& prepare, const F& f,
                 const Done& done) {
  member.Run(static_cast<size_t>(call.kv_heads * count), prepare, [&](size_t task) {
    const int64_t head = static_cast<int64_t>(task) / count;
    f(head, static_cast<int64_t>(task) % count);
    if (pending[head].fetch_sub(1, std::memory_order_acq_rel) == 1) done(head);
  });
}

}  // namespace

Attention::Attention(const Attributes& attributes, const char* op) : op_(op) {
  sizes_.heads = attributes.Int("num_heads", 1, 1024);
  sizes_.kv_heads = attributes.Int("kv_heads", 1, sizes_.heads);
  sizes_.group = sizes_.heads / sizes_.kv_heads;
  sizes_.head_dim = attributes.Int("head_dim", 2, kMaxHeadDim);
  sizes_.rotary_dim = attributes.Int("rotary_dim", 0, sizes_.head_dim);
  attributes.Int("page_size", kPageSize, kPageSize);
  sizes_.sinks = attributes.Int("sinks", 0, kMaxCapacity);
  sizes_.scale = attributes.Float("softmax_scale");
  const auto refuse = [&](const std::string& what) { throw Error(std::string(op) + ": " + what + "; export the bundle again"); };
  if (sizes_.heads % sizes_.kv_heads != 0 || sizes_.group > kMaxGroup) {
    refuse("attribute num_heads: got " + std::to_string(sizes_.heads) + ", expected a multiple of kv_heads " +
           std::to_string(sizes_.kv_heads) + ", at most " + std::to_string(kMaxGroup) + " times it");
  }
  if (sizes_.head_dim % 2 != 0) refuse("attribute head_dim: got " + std::to_string(sizes_.head_dim) + ", expected an even number");
  if (sizes_.rotary_dim % 2 != 0) refuse("attribute rotary_dim: got " + std::to_string(sizes_.rotary_dim) + ", expected an even number");
  if (!std::isfinite(sizes_.scale)) refuse("attribute softmax_scale: got a non-finite number");
}

AttentionCall Attention::Begin(const Context& context, const Inputs& inputs, int64_t tokens, size_t first_output) const {
  AttentionCall call = sizes_;
  const int64_t dim = call.head_dim;
  Expect(op_, "past_key", inputs.key, kFloat16, {1, call.kv_heads, -1, dim});
  call.capacity = inputs.key.dims[2];
  if (call.capacity % kPageSize != 0 || call.capacity > kMaxCapacity) {
    throw Error(std::string(op_) + ": input past_key: got capacity " + std::to_string(call.capacity) + ", expected a multiple of " +
                std::to_string(kPageSize) + " up to " + std::to_string(kMaxCapacity));
  }
  Expect(op_, "past_value", inputs.value, kFloat16, {1, call.kv_heads, call.capacity, dim});
  Expect(op_, "past_page_min", inputs.page_min, kFloat16, {1, call.kv_heads, call.capacity / kPageSize, dim});
  Expect(op_, "past_page_max", inputs.page_max, kFloat16, {1, call.kv_heads, call.capacity / kPageSize, dim});
  Expect(op_, "past_length", inputs.past_length, kInt64, {1});
  Expect(op_, "attn_keep", inputs.attn_keep, kInt64, {1});
  Expect(op_, "cos", inputs.cos, kFloat, {-1, call.rotary_dim / 2});
  Expect(op_, "sin", inputs.sin, kFloat, {inputs.cos.dims[0], call.rotary_dim / 2});

  call.tokens = tokens;
  call.past = *inputs.past_length.As<int64_t>();
  call.keep = *inputs.attn_keep.As<int64_t>();
  if (call.past < 0 || call.past > call.capacity - call.tokens) {
    throw Error(std::string(op_) + ": input past_length: got " + std::to_string(call.past) + " with " + std::to_string(call.tokens) +
                " new tokens, expected 0 to the capacity " + std::to_string(call.capacity) + " less the new tokens; enlarge the cache");
  }
  call.total = call.past + call.tokens;
  call.pages = DivideUp(call.total, kPageSize);
  if (inputs.cos.dims[0] < call.total) {
    throw Error(std::string(op_) + ": input cos: got " + std::to_string(inputs.cos.dims[0]) + " positions, expected at least " +
                std::to_string(call.total) + "; the context is longer than the model's");
  }
  if (call.keep < 0) throw Error(std::string(op_) + ": input attn_keep: got " + std::to_string(call.keep) + ", expected 0 or more");

  call.cos = inputs.cos.As<float>();
  call.sin = inputs.sin.As<float>();
  call.key = Present(context, first_output, inputs.key);
  call.value = Present(context, first_output + 1, inputs.value);
  call.page_min = Present(context, first_output + 2, inputs.page_min);
  call.page_max = Present(context, first_output + 3, inputs.page_max);
  return call;
}

DecodePlan Attention::PlanStep(const AttentionCall& call, Arena& arena) const {
  DecodePlan plan{};
  plan.sparse = call.keep < call.pages - 1;
  plan.padded_dim = RoundUp(call.head_dim, kMaxLanes);
  plan.max_pages = plan.sparse ? std::min(call.pages, call.keep + 1 + DivideUp(std::min(call.sinks, call.total), kPageSize)) : call.pages;
  plan.chunk_pages = std::clamp(DivideUp(plan.max_pages * call.kv_heads, kDecodeTasks), kMinChunkPages, kMaxChunkPages);
  plan.chunks = DivideUp(plan.max_pages, plan.chunk_pages);
  // Four scores are stored at a time, and whole vectors are read.
  plan.score_stride = RoundUp(call.pages, kMaxLanes);

  const auto take = [&arena](int64_t count, auto*& array) {
    array = arena.Take<std::remove_reference_t<decltype(*array)>>(static_cast<size_t>(count));
  };
  const int64_t parts = call.kv_heads * plan.chunks * call.group;
  take(parts, plan.partial_max);
  take(parts, plan.partial_sum);
  take(parts * plan.padded_dim, plan.partial_values);
  take(call.kv_heads, plan.pending_chunks);
  if (plan.sparse) {
    take(call.kv_heads * plan.score_stride, plan.page_scores);
    take(call.kv_heads * (plan.max_pages + kMaxLanes), plan.page_start);
    take(call.kv_heads * (plan.max_pages + kMaxLanes), plan.page_count);
    take(call.kv_heads, plan.listed);
    take(call.kv_heads, plan.pending_scores);
  }
  return plan;
}

DecodePlan Attention::PlanOwn(const AttentionCall& call, const DecodePlan& plan, Arena& arena) const {
  DecodePlan own = plan;
  const size_t count = static_cast<size_t>(call.heads * plan.padded_dim);
  own.query = arena.Take<float>(count);
  if (plan.sparse) {
    own.query_upper = arena.Take<float>(count);
    own.query_lower = arena.Take<float>(count);
  }
  return own;
}

void Attention::StartStep(const AttentionCall& call, const DecodePlan& plan) const {
  for (int64_t head = 0; head < call.kv_heads; ++head) {
    new (plan.pending_chunks + head) std::atomic<int32_t>(static_cast<int32_t>(plan.chunks));
    if (plan.sparse) new (plan.pending_scores + head) std::atomic<int32_t>(static_cast<int32_t>(ScoreTasks(call)));
  }
  FetchEarly(call, plan.sparse);
}

size_t Attention::StepMembers(const AttentionCall& call, const DecodePlan& plan) const {
  const int64_t row_bytes = call.kv_heads * call.head_dim * 4;
  const int64_t most_rows = std::max(plan.max_pages * kPageSize, plan.sparse ? call.pages - 1 : 0);
  return most_rows * row_bytes >= kParallelBytes ? ThreadCount::Estimate() : 1;
}

void Attention::Step(Member& member, const AttentionCall& call, const DecodePlan& own) const {
  const AttentionKernels& kernels = BestAttentionKernels();
  const int64_t newest = call.pages - 1;
  bool prepared = false;
  const auto prepare = [&] {
    if (!prepared) kernels.prepare_queries(call, own);
    prepared = true;
  };
  if (own.sparse) {
    ForEachPart(
        member, call, own.pending_scores, ScoreTasks(call), prepare,
        [&](int64_t head, int64_t i) {
          if (i == 0) kernels.append_page(call, head, newest);
          kernels.score_pages(call, own, head, i * kScoredPages, std::min(newest, (i + 1) * kScoredPages));
        },
        [&](int64_t head) { kernels.select_pages(call, own, head); });
  }
  ForEachPart(
      member, call, own.pending_chunks, own.chunks, prepare,
      [&](int64_t head, int64_t chunk) {
        if (!own.sparse && chunk == own.chunks - 1) kernels.append_page(call, head, newest);  // this chunk's own page
        kernels.decode_chunk(call, own, head, chunk);
      },
      [&](int64_t head) { kernels.combine_chunks(call, own, head); });
}

void Attention::Rows(const Context& context, const AttentionCall& call) const {
  const AttentionKernels& best = BestAttentionKernels();
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
  if (out_of_memory) throw Error(std::string(op_) + ": out of memory; use a shorter prompt chunk");
}

}  // namespace sol
