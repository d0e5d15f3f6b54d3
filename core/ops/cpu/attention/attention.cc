#include "cpu/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <new>
#include <string>
#include <type_traits>

#include "cpu/attention/attention_kernels.h"
#include "cpu/few_tokens.h"
#include "cpu/session_rows.h"
#include "cpu/threads/team_members.h"

namespace sol {
namespace {

// Below this many bytes of keys and values, waking a second thread costs more than it saves.
constexpr int64_t kParallelBytes = 96 * 1024;
// Fetched from memory before attention begins.
constexpr int64_t kEarlyBytes = 64 * 1024;
// Decode tasks to cut a step into, where chunks do not get too small or too large.
constexpr int64_t kDecodeTasks = 16;
constexpr int64_t kMinChunkTokens = 64;
// Prefill tasks wanted: where queries are few, keys are split as well, into shares of at least so many.
constexpr int64_t kPrefillTasks = 8;
constexpr int64_t kMinSplitKeys = 512;

// A tensor of the cache that a call appends to: the caller's own, where it is bound as input and output, else a copy.
template <class T>
T* Present(const Context& context, const char* op, const char* name, size_t input, size_t output, std::initializer_list<int64_t> shape) {
  T* present = context.Output<T>(output, shape);  // ONNX Runtime refuses a bound one of another shape
  if (present == context.InputData(input)) return present;
  const Tensor past = context.Input(input);
  Expect(op, name, past, std::is_same_v<T, uint8_t> ? kUInt8 : sizeof(T) == 1 ? kInt8 : kFloat16, shape);
  std::memcpy(present, past.data, static_cast<size_t>(past.Elements()) * sizeof(T));
  return present;
}

// Asks for what a member reads first of the keys and values, or of the key codes where tokens are selected: share `share` of `members`.
void PrefetchShare(const AttentionCall& call, const DecodePlan& plan, size_t share, size_t members) {
  const int64_t half = call.rotary_dim / 2;
  PrefetchBytes(call.cos + call.past * half, half * static_cast<int64_t>(sizeof(float)));
  PrefetchBytes(call.sin + call.past * half, half * static_cast<int64_t>(sizeof(float)));
  // Rows of a page where codes are read, of a token else.
  const int64_t row = plan.sparse ? kPageSize * call.CodeBytes() : call.RowBytes();
  const int64_t other_row = plan.sparse ? kPageSize * 2 * static_cast<int64_t>(sizeof(hwy::float16_t)) : row;
  const auto* first = static_cast<const char*>(plan.sparse ? static_cast<const void*>(call.key_codes) : call.key);
  const auto* second = static_cast<const char*>(plan.sparse ? static_cast<const void*>(call.key_range) : call.value);
  const int64_t stride = plan.sparse ? call.capacity / kPageSize : call.capacity;  // rows of a head
  const int64_t rows = std::min(kEarlyBytes / ((row + other_row) * call.kv_heads), plan.sparse ? call.pages - 1 : call.past);
  const Range mine = ShareOf(static_cast<size_t>(call.kv_heads * rows), 4, share, members);
  for (size_t i = mine.begin; i < mine.end; ++i) {
    const int64_t head = static_cast<int64_t>(i) / rows, at = head * stride + static_cast<int64_t>(i) % rows;
    PrefetchBytes(first + at * row, row);
    PrefetchBytes(second + at * other_row, other_row);
  }
}

// Leaves out what lies before the window of the first new token. Of the old pages in it, one new token reads as large a share as of all,
// rounded up.
void BeginWindow(AttentionCall& call) {
  const int64_t first = std::max<int64_t>(0, call.past + 1 - call.window), old_pages = call.pages - 1;
  const int64_t base = first / kPageSize * kPageSize;
  if (call.kv_pages < old_pages) call.kv_pages = DivideUp(call.kv_pages * (old_pages - base / kPageSize), old_pages);
  call.base += base;
  call.skip = first - base;
  call.past -= base;
  call.total -= base;
  call.pages -= base / kPageSize;
  call.sinks = std::max<int64_t>(0, call.sinks - base);
  call.cos += base * (call.rotary_dim / 2);
  call.sin += base * (call.rotary_dim / 2);
  call.key = static_cast<char*>(call.key) + base * call.RowBytes();
  call.value = static_cast<char*>(call.value) + base * call.RowBytes();
  if (call.int8) {
    call.key_scale += base;
    call.value_scale += base;
  }
  call.key_codes += base * call.CodeBytes();
  call.key_range += base * 2;
}

// The call of one of the new tokens alone, when all are in the cache.
AttentionCall CallOfRow(const AttentionCall& call, int64_t row) {
  AttentionCall one = call;
  one.past += row;
  one.tokens = 1;
  one.total = one.past + 1;
  one.pages = DivideUp(one.total, kPageSize);
  one.kv_pages = one.pages;
  one.qkv = call.QueryRow(row, 0);
  one.y += row * call.heads * call.head_dim;
  if (one.window > 0) BeginWindow(one);
  return one;
}

// Another session's buffer in place of the first one's.
template <class T>
void FindBuffer(const SolSessionRows& sessions, const SolSessionRow& row, T*& buffer) {
  void* const* const first = sessions.rows[0].cache;
  void* const* const found = std::lower_bound(first, first + sessions.buffers, static_cast<void*>(buffer), std::less<void*>());
  if (found == first + sessions.buffers || *found != buffer) throw Error("a shared run: got a buffer that is not of the first session's cache");
  buffer = static_cast<T*>(row.cache[found - first]);
}

// The call of one session's token alone.
AttentionCall CallOfSession(const AttentionCall& call, int64_t token) {
  const SolSessionRow& row = call.sessions->rows[token];
  AttentionCall one = call;
  one.sessions = nullptr;
  one.capacity = row.capacity;
  one.past = row.past;
  one.tokens = 1;
  one.total = one.past + 1;
  one.pages = DivideUp(one.total, kPageSize);
  if (one.kv_pages == 0) one.kv_pages = row.kv_pages;
  one.qkv = call.QueryRow(token, 0);
  one.y += token * call.heads * call.head_dim;
  FindBuffer(*call.sessions, row, one.key);
  FindBuffer(*call.sessions, row, one.value);
  FindBuffer(*call.sessions, row, one.key_codes);
  FindBuffer(*call.sessions, row, one.key_range);
  if (one.int8) {
    FindBuffer(*call.sessions, row, one.key_scale);
    FindBuffer(*call.sessions, row, one.value_scale);
  }
  if (one.window > 0) BeginWindow(one);
  return one;
}

// Ends one of the pending tasks. True if it was the last one.
bool EndOne(std::atomic<int32_t>& pending) { return pending.fetch_sub(1, std::memory_order_acq_rel) == 1; }

// Place in memory, out of `count`, that a task works on. Tasks are claimed from both ends, but memory delivers fastest in ascending order: the upper
// half is turned round, so that a member from the back works upwards from the middle.
int64_t PlaceOfTask(int64_t task, int64_t count) {
  const int64_t half = count / 2;
  return task < half ? task : half + count - 1 - task;
}

}  // namespace

Attention::Attention(const Attributes& attributes, const char* op, bool int8, size_t scale_port, int64_t layer)
    : op_(op),
      scale_port_(scale_port),
      past_length_(attributes, op, kKeyPort + 4, "past_length"),
      kv_pages_(attributes, op, kKeyPort + 5, "kv_pages", layer) {
  const AttentionSizes read = ReadAttentionSizes(attributes, op, int8, scale_port);
  sizes_.int8 = int8;
  sizes_.heads = read.heads;
  sizes_.kv_heads = read.kv_heads;
  sizes_.group = read.heads / read.kv_heads;
  sizes_.head_dim = read.head_dim;
  sizes_.rotary_dim = read.rotary_dim;
  sizes_.sinks = read.sinks;
  sizes_.window = read.window;
  sizes_.scale = read.scale;
  sizes_.softcap = read.softcap;
}

AttentionCall Attention::Begin(const Context& context, const Tensor& cos, const Tensor& sin, int64_t tokens) const {
  AttentionCall call = sizes_;
  const int64_t dim = call.head_dim;
  call.capacity = ReadCapacity(op_, context.Input(kKeyPort), call.int8, call.kv_heads, dim);
  if (call.rotary_dim > 0) {  // else the tables are not read
    Expect(op_, "cos", cos, kFloat, {-1, call.rotary_dim / 2});
    Expect(op_, "sin", sin, kFloat, {cos.dims[0], call.rotary_dim / 2});
  }

  call.tokens = tokens;
  call.past = past_length_.Read(context);
  call.kv_pages = kv_pages_.Read(context);
  call.sessions = SessionRowsOfRun();
  if (call.sessions == nullptr) {
    CheckPlace(call.past, call.tokens, call.capacity, cos.dims[0]);
  } else {
    if (static_cast<int64_t>(call.sessions->count) != call.tokens || call.sessions->count > kMostSessionRows) {
      throw Error(std::string(op_) + ": a shared run: got " + std::to_string(call.tokens) + " tokens, expected one for each of its " +
                  std::to_string(call.sessions->count) + " sessions, at most " + std::to_string(kMostSessionRows));
    }
    for (int64_t i = 0; i < call.tokens; ++i) CheckPlace(call.sessions->rows[i].past, 1, call.sessions->rows[i].capacity, cos.dims[0]);
    call.past = 0;
  }
  call.total = call.past + call.tokens;
  call.pages = DivideUp(call.total, kPageSize);
  if (call.kv_pages < 0) throw Error(std::string(op_) + ": input kv_pages: got " + std::to_string(call.kv_pages) + ", expected 0 or more");

  call.cos = cos.As<float>();
  call.sin = sin.As<float>();
  const auto present = [&](auto element, const char* name, size_t input, size_t output, std::initializer_list<int64_t> shape) {
    return Present<decltype(element)>(context, op_, name, input, output, shape);
  };
  const hwy::float16_t half{};
  const std::initializer_list<int64_t> rows{1, call.kv_heads, call.capacity, dim};
  if (call.int8) {
    const std::initializer_list<int64_t> scales{1, call.kv_heads, call.capacity};
    call.key = present(int8_t{}, "past_key", kKeyPort, 1, rows);
    call.value = present(int8_t{}, "past_value", kKeyPort + 1, 2, rows);
    call.key_scale = present(half, "past_key_scale", scale_port_, kScaleOutput, scales);
    call.value_scale = present(half, "past_value_scale", scale_port_ + 1, kScaleOutput + 1, scales);
  } else {
    call.key = present(half, "past_key", kKeyPort, 1, rows);
    call.value = present(half, "past_value", kKeyPort + 1, 2, rows);
  }
  call.key_codes = present(uint8_t{}, "past_key_codes", kKeyPort + 2, 3, {1, call.kv_heads, call.capacity, dim / 2});
  call.key_range = present(half, "past_key_range", kKeyPort + 3, 4, {1, call.kv_heads, call.capacity, 2});
  if (call.window > 0 && call.sessions == nullptr) BeginWindow(call);
  return call;
}

void Attention::CheckPlace(int64_t past, int64_t tokens, int64_t capacity, int64_t positions) const {
  if (past < 0 || past > capacity - tokens) {
    throw Error(std::string(op_) + ": input past_length: got " + std::to_string(past) + " with " + std::to_string(tokens) +
                " new tokens, expected 0 to the capacity " + std::to_string(capacity) + " less the new tokens; enlarge the cache");
  }
  if (positions < past + tokens) {
    throw Error(std::string(op_) + ": input cos: got " + std::to_string(positions) + " positions, expected at least " + std::to_string(past + tokens) +
                "; the context is longer than the model's");
  }
}

DecodePlan Attention::PlanStep(const AttentionCall& call, Arena& arena) const {
  DecodePlan plan{};
  plan.sparse = call.kv_pages < call.pages - 1;
  plan.padded_dim = RoundUp(call.head_dim, kMaxLanes);
  plan.code_stride = call.CodeStride();
  plan.old_tokens = (call.pages - 1) * kPageSize;
  const int64_t always = std::min(call.sinks, plan.old_tokens) + call.total - plan.old_tokens;
  plan.most_tokens = call.kv_heads * (plan.sparse ? call.kv_pages * kPageSize + always : call.total);
  plan.chunk_tokens = std::clamp(RoundUp(DivideUp(plan.most_tokens, kDecodeTasks), kMaxLanes), kMinChunkTokens, kMaxChunkTokens);
  plan.most_chunks = plan.most_tokens / plan.chunk_tokens + call.kv_heads;
  plan.token_blocks = DivideUp(plan.old_tokens, kBlockTokens);
  plan.score_stride = RoundUp(plan.old_tokens, kMaxLanes);
  plan.list_stride = plan.score_stride + kPageSize + kMaxLanes;

  const auto take = [&arena](int64_t count, auto*& array) {
    array = arena.Take<std::remove_reference_t<decltype(*array)>>(static_cast<size_t>(count));
  };
  take(plan.most_chunks * call.group, plan.partial_max);
  take(plan.most_chunks * call.group, plan.partial_sum);
  take(plan.most_chunks * call.group * plan.padded_dim, plan.partial_values);
  take(call.kv_heads + 1, plan.first_chunk);
  take(call.kv_heads, plan.pending_chunks);
  if (plan.sparse) {
    take(call.heads * plan.score_stride, plan.token_weights);
    take(call.heads * plan.token_blocks, plan.block_max);
    take(call.heads * plan.token_blocks, plan.block_sum);
    take(call.kv_heads * plan.score_stride, plan.token_scores);
    take(call.kv_heads * plan.score_stride + kMaxLanes, plan.candidates);
    take(call.kv_heads * plan.list_stride, plan.tokens);
    take(call.kv_heads, plan.listed);
    take(1, plan.pending_blocks);
  }
  return plan;
}

DecodePlan Attention::PlanMember(const AttentionCall& call, const DecodePlan& shared, Arena& arena) const {
  DecodePlan plan = shared;
  const size_t count = static_cast<size_t>(call.heads * plan.padded_dim);
  plan.query = arena.Take<float>(count);
  if (plan.sparse) {
    plan.query_low = arena.Take<int8_t>(static_cast<size_t>(call.heads * plan.code_stride));
    plan.query_high = arena.Take<int8_t>(static_cast<size_t>(call.heads * plan.code_stride));
    plan.query_step = arena.Take<float>(static_cast<size_t>(call.heads));
    plan.query_sum = arena.Take<float>(static_cast<size_t>(call.heads));
  }
  return plan;
}

void Attention::StartStep(const AttentionCall& call, const DecodePlan& plan) const {
  if (plan.sparse) {
    new (plan.pending_blocks) std::atomic<int32_t>(static_cast<int32_t>(call.kv_heads * plan.token_blocks));
    return;
  }
  const auto chunks = static_cast<int32_t>(DivideUp(call.total - call.skip, plan.chunk_tokens));
  for (int64_t head = 0; head < call.kv_heads; ++head) {
    plan.first_chunk[head] = static_cast<int32_t>(head) * chunks;
    new (plan.pending_chunks + head) std::atomic<int32_t>(chunks);
  }
  plan.first_chunk[call.kv_heads] = static_cast<int32_t>(call.kv_heads) * chunks;
}

size_t Attention::StepMembers(const AttentionCall& call, const DecodePlan& plan) const {
  const int64_t cache = plan.most_tokens * 2 * call.RowBytes();
  const int64_t codes = plan.sparse ? call.kv_heads * plan.old_tokens * call.CodeBytes() : 0;
  return std::max(cache, codes) >= kParallelBytes ? TeamMembers() : 1;
}

void Attention::Prefetch(const Member& member, size_t members, const AttentionCall& call, const DecodePlan& plan) const {
  PrefetchShare(call, plan, member.FirstOf(members), members);
}

void Attention::PrepareQueries(const AttentionCall& call, const DecodePlan& plan) const {
  BestAttentionKernels().prepare_queries(call, plan);
}

size_t Attention::ScoreTasks(const AttentionCall& call, const DecodePlan& plan) const {
  return static_cast<size_t>(call.kv_heads * plan.token_blocks);
}

void Attention::Weigh(const AttentionCall& call, const DecodePlan& plan, size_t task) const {
  const AttentionKernels& kernels = BestAttentionKernels();
  const int64_t at = PlaceOfTask(static_cast<int64_t>(task), call.kv_heads * plan.token_blocks);
  const int64_t head = at / plan.token_blocks, block = at % plan.token_blocks;
  if (block == 0) kernels.append_page(call, head, call.pages - 1);
  kernels.weigh_tokens(call, plan, head, block);
}

void Attention::Score(const AttentionCall& call, const DecodePlan& plan, size_t task) const {
  const AttentionKernels& kernels = BestAttentionKernels();
  const int64_t at = PlaceOfTask(static_cast<int64_t>(task), call.kv_heads * plan.token_blocks);
  kernels.score_tokens(call, plan, at / plan.token_blocks, at % plan.token_blocks);
  if (EndOne(*plan.pending_blocks)) kernels.select_tokens(call, plan);
}

size_t Attention::ChunkTasks(const AttentionCall& call, const DecodePlan& plan) const { return static_cast<size_t>(plan.first_chunk[call.kv_heads]); }

void Attention::Attend(const AttentionCall& call, const DecodePlan& plan, size_t task) const {
  const AttentionKernels& kernels = BestAttentionKernels();
  const int64_t chunk = PlaceOfTask(static_cast<int64_t>(task), plan.first_chunk[call.kv_heads]);
  int64_t head = 0;
  while (plan.first_chunk[head + 1] <= chunk) ++head;
  if (!plan.sparse && !plan.appended && chunk == plan.first_chunk[head + 1] - 1) kernels.append_page(call, head, call.pages - 1);  // this chunk's own page
  kernels.decode_chunk(call, plan, head, chunk);
  if (EndOne(plan.pending_chunks[head])) kernels.combine_chunks(call, plan, head);
}

void Attention::FewRows(const Context& context, const AttentionCall& call) const {
  const AttentionKernels& best = BestAttentionKernels();
  struct Row {
    AttentionCall call;
    DecodePlan plan;
  };
  const size_t count = static_cast<size_t>(call.tokens);
  thread_local Buffer memory;
  Row* rows = nullptr;
  Place(memory, [&](Arena& arena) {
    int64_t row = 0;
    rows = arena.Each(count, [&] {
      const int64_t token = row++;
      const AttentionCall one = call.sessions == nullptr ? CallOfRow(call, token) : CallOfSession(call, token);
      const DecodePlan plan = PlanStep(one, arena);
      return Row{one, PlanMember(one, plan, arena)};
    });
  });
  bool sparse = false;
  for (size_t i = 0; i < count; ++i) {
    StartStep(rows[i].call, rows[i].plan);
    rows[i].plan.appended = call.sessions == nullptr;
    sparse |= rows[i].plan.sparse;
  }
  // Of one session, later tokens read what earlier ones append. Of several, each appends where it first reads the page.
  const int64_t first_page = call.past / kPageSize, touched = call.sessions == nullptr ? call.pages - first_page : 0;
  const size_t appends = static_cast<size_t>(call.kv_heads * touched);
  context.ParallelFor(appends + count, [&](size_t task) {
    if (task >= appends) return PrepareQueries(rows[task - appends].call, rows[task - appends].plan);
    best.append_page(call, static_cast<int64_t>(task) / touched, first_page + static_cast<int64_t>(task) % touched);
  });
  // Rows in turn: what one has read of the cache is near when the next one of its session reads it.
  const auto run = [&](const auto& tasks_of, const auto& work) {
    size_t most = 0;
    for (size_t i = 0; i < count; ++i) most = std::max(most, tasks_of(rows[i]));
    context.ParallelFor(most * count, [&](size_t task) {
      const Row& row = rows[task % count];
      if (task / count < tasks_of(row)) work(row, task / count);
    });
  };
  if (sparse) {
    const auto tasks = [this](const Row& row) { return row.plan.sparse ? ScoreTasks(row.call, row.plan) : 0; };
    run(tasks, [this](const Row& row, size_t task) { Weigh(row.call, row.plan, task); });
    run(tasks, [this](const Row& row, size_t task) { Score(row.call, row.plan, task); });
  }
  run([this](const Row& row) { return ChunkTasks(row.call, row.plan); }, [this](const Row& row, size_t task) { Attend(row.call, row.plan, task); });
}

void Attention::Rows(const Context& context, const AttentionCall& call) const {
  if (call.tokens <= static_cast<int64_t>(kFewTokens)) return FewRows(context, call);
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
  context.ParallelFor(static_cast<size_t>(groups * splits), [&](size_t task) {
    thread_local Buffer task_memory;
    const int64_t group = static_cast<int64_t>(task) / splits;
    const int64_t split = static_cast<int64_t>(task) % splits;
    const int64_t kv_head = group % call.kv_heads;
    // Late blocks attend more keys: the longest tasks go first.
    const int64_t block = blocks - 1 - group / call.kv_heads;
    float* scratch = task_memory.Get<float>(static_cast<size_t>(scratch_floats + state_floats));
    float* state = shared ? states + (group * splits + split) * state_floats : scratch + scratch_floats;
    best.prefill_block(call, kv_head, block, split, splits, scratch, state);
    if (shared && pending[group].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      best.combine_splits(call, kv_head, block, splits, states + group * splits * state_floats);
    }
  });
}

}  // namespace sol
