// One decode step: page scores, page selection, attention over one chunk of pages, combination of the chunks.
#if defined(SOL_RT_OPS_ATTENTION_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#undef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#endif

#include <limits>
#include <type_traits>

#include "attention_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

// Heads of a group that share one pass over keys and values, and vectors of a value row that are summed up for each of them: bounded by
// registers.
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int64_t kMaxHeads = 6;
inline constexpr int kValueVectors = 4;
#else
inline constexpr int64_t kMaxHeads = 3;
inline constexpr int kValueVectors = 2;
#endif
// How far ahead of the arithmetic old pages' summaries and attended pages are fetched: what memory delivers to one core within its latency,
// and not so much that the buffers for outstanding lines fill and stop the arithmetic.
inline constexpr int64_t kSummariesAhead = 16;
inline constexpr int64_t kBytesAhead = 8192;

// Calls f with the number of heads as a constant for each pass over a group's heads: f(constant, first head in group).
template <class F>
HWY_INLINE void ForEachPass(int64_t group, F&& f) {
  const int64_t share = DivideUp(group, DivideUp(group, kMaxHeads));
  for (int64_t h = 0; h < group; h += share) {
    switch (HWY_MIN(group - h, share)) {
      case 1: f(std::integral_constant<int, 1>(), h); break;
      case 2: f(std::integral_constant<int, 2>(), h); break;
      case 3: f(std::integral_constant<int, 3>(), h); break;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
      case 4: f(std::integral_constant<int, 4>(), h); break;
      case 5: f(std::integral_constant<int, 5>(), h); break;
      default: f(std::integral_constant<int, 6>(), h); break;
#endif
    }
  }
}

// Rotated queries of the step, in the three forms that attention and page scores read.
void PrepareQueries(const AttentionCall& call, const DecodePlan& plan) {
  const F32 d;
  for (int64_t head = 0; head < call.heads; ++head) {
    const int64_t at = head * plan.padded_dim;
    const float* from = call.QueryRow(0, head);
    RotateRow(call, from, call.past, call.scale * kLog2E, plan.query + at);
    if (!plan.sparse) continue;
    RotateRow(call, from, call.past, 1.0f, plan.query_upper + at);
    for (int64_t i = 0; i < plan.padded_dim; i += kLanes) {
      const VF q = hn::LoadU(d, plan.query_upper + at + i);
      hn::StoreU(hn::Max(q, hn::Zero(d)), d, plan.query_upper + at + i);
      hn::StoreU(hn::Min(q, hn::Zero(d)), d, plan.query_lower + at + i);
    }
  }
}

// Maximum over `Heads` query heads of the scores of 4 pages, whose summaries start at the given offsets.
template <int Heads>
HWY_INLINE VQuad ScoreFourPages(const AttentionCall& call, const DecodePlan& plan, int64_t first_head, const int64_t (&offset)[4]) {
  const F32 d;
  VF sum[Heads][4];
  for (int h = 0; h < Heads; ++h) {
    for (int p = 0; p < 4; ++p) sum[h][p] = hn::Zero(d);
  }
  const float* upper = plan.query_upper + first_head * plan.padded_dim;
  const float* lower = plan.query_lower + first_head * plan.padded_dim;
  const auto add = [&](int64_t i, auto load) HWY_ATTR {
    for (int p = 0; p < 4; ++p) {
      const VF low = load(call.page_min + offset[p] + i);
      const VF high = load(call.page_max + offset[p] + i);
      for (int h = 0; h < Heads; ++h) {
        // max(q low, q high) is q high where q > 0, else q low.
        sum[h][p] = hn::MulAdd(hn::LoadU(d, upper + h * plan.padded_dim + i), high, sum[h][p]);
        sum[h][p] = hn::MulAdd(hn::LoadU(d, lower + h * plan.padded_dim + i), low, sum[h][p]);
      }
    }
  };
  int64_t i = 0;
  for (; i + kLanes <= call.head_dim; i += kLanes) add(i, [](const hwy::float16_t* p) HWY_ATTR { return LoadFloats(p); });
  if (const int64_t rest = call.head_dim - i; rest > 0) {
    add(i, [rest](const hwy::float16_t* p) HWY_ATTR { return LoadFloats(p, rest); });
  }
  VQuad best = SumOfEach(sum[0][0], sum[0][1], sum[0][2], sum[0][3]);
  for (int h = 1; h < Heads; ++h) best = hn::Max(best, SumOfEach(sum[h][0], sum[h][1], sum[h][2], sum[h][3]));
  return best;
}

// Scores of the old pages [begin, end) of one KV head; `begin` is a multiple of 4.
void ScorePages(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t begin, int64_t end) {
  const Quad d;
  const hn::RebindToSigned<Quad> di;
  int32_t* scores = plan.page_scores + kv_head * plan.score_stride;
  for (int64_t page = begin; page < end; page += 4) {
    if (page + kSummariesAhead < end) {
      const int64_t ahead = call.SummaryOffset(kv_head, page + kSummariesAhead);
      PrefetchBytes(call.page_min + ahead, 4 * call.SummaryBytes());
      PrefetchBytes(call.page_max + ahead, 4 * call.SummaryBytes());
    }
    int64_t offset[4];
    for (int i = 0; i < 4; ++i) offset[i] = call.SummaryOffset(kv_head, HWY_MIN(page + i, end - 1));
    VQuad best = hn::Set(d, -std::numeric_limits<float>::infinity());
    ForEachPass(call.group, [&](auto heads, int64_t h) HWY_ATTR {
      best = hn::Max(best, ScoreFourPages<decltype(heads)::value>(call, plan, kv_head * call.group + h, offset));
    });
    // Integers of the same order as the floats; -0 counts as 0.
    const auto bits = hn::BitCast(di, hn::Add(best, hn::Zero(d)));
    const auto magnitude = hn::And(hn::ShiftRight<31>(bits), hn::Set(di, 0x7FFFFFFF));
    hn::StoreU(hn::Xor(bits, magnitude), di, scores + page);
  }
}

HWY_INLINE int64_t CountAtLeast(const int32_t* scores, int64_t padded, int32_t threshold) {
  const I32 d;
  const auto limit = hn::Set(d, threshold);
  auto count = hn::Zero(d);
  for (int64_t i = 0; i < padded; i += kLanes) {
    count = hn::Sub(count, hn::VecFromMask(d, hn::Ge(hn::LoadU(d, scores + i), limit)));
  }
  return hn::ReduceSum(d, count);
}

// Lists the pages that one KV head attends: the `keep` best old ones, sinks, and the newest page.
void SelectPages(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head) {
  const I32 d;
  const int64_t old_pages = call.pages - 1;
  const int64_t padded = RoundUp(old_pages, kMaxLanes);
  int32_t* scores = plan.page_scores + kv_head * plan.score_stride;
  constexpr int32_t kLowest = std::numeric_limits<int32_t>::min();
  for (int64_t i = old_pages; i < padded; ++i) scores[i] = kLowest;

  // The largest threshold that at least `keep` scores reach, bit by bit in the order of unsigned numbers.
  uint32_t reached = 0;
  for (uint32_t bit = 0x80000000u; bit != 0 && call.keep > 0; bit >>= 1) {
    const uint32_t candidate = reached | bit;
    const int64_t count = CountAtLeast(scores, padded, static_cast<int32_t>(candidate ^ 0x80000000u));
    if (count >= call.keep) reached = candidate;
    if (count == call.keep) break;
  }
  const int32_t threshold = static_cast<int32_t>(reached ^ 0x80000000u);
  // Among equal scores the lower pages win: the last one taken bounds them.
  int64_t last_tie = call.keep > 0 ? old_pages : -1;
  if (call.keep > 0 && (reached == 0 || CountAtLeast(scores, padded, threshold) > call.keep)) {
    int64_t ties = call.keep;
    for (int64_t i = 0; i < old_pages; ++i) ties -= scores[i] > threshold;
    for (last_tie = -1; ties > 0; ties -= scores[last_tie] == threshold) ++last_tie;
  }

  const int64_t full_sinks = HWY_MIN(call.sinks / kPageSize, old_pages);
  const int64_t sink_rest = full_sinks < old_pages ? call.sinks - full_sinks * kPageSize : 0;
  int32_t* start = plan.page_start + kv_head * (plan.max_pages + kMaxLanes);
  int32_t* count = plan.page_count + kv_head * (plan.max_pages + kMaxLanes);
  const auto limit = hn::Set(d, threshold);
  const auto tie_end = hn::Set(d, static_cast<int32_t>(last_tie));
  const auto sink_end = hn::Set(d, static_cast<int32_t>(full_sinks));
  const auto none = hn::MaskFalse(d);
  int64_t listed = 0;
  bool sink_page_kept = false;
  for (int64_t i = 0; i < old_pages; i += kLanes) {
    const auto index = hn::Iota(d, static_cast<int32_t>(i));
    const auto score = hn::LoadU(d, scores + i);
    auto kept = hn::Or(hn::Gt(score, limit), hn::And(hn::Eq(score, limit), hn::Le(index, tie_end)));
    if (call.keep == 0) kept = none;
    kept = hn::Or(kept, hn::Lt(index, sink_end));
    kept = hn::And(kept, hn::Lt(index, hn::Set(d, static_cast<int32_t>(old_pages))));
    listed += static_cast<int64_t>(hn::CompressStore(hn::ShiftLeft<4>(index), kept, d, start + listed));
  }
  static_assert(kPageSize == 1 << 4);
  for (int64_t i = 0; i < listed; ++i) count[i] = kPageSize;
  if (sink_rest > 0) {
    const int64_t first = full_sinks * kPageSize;
    for (int64_t i = 0; i < listed && start[i] <= first; ++i) sink_page_kept |= start[i] == first;
    if (!sink_page_kept) {
      start[listed] = static_cast<int32_t>(first);
      count[listed++] = static_cast<int32_t>(sink_rest);
    }
  }
  start[listed] = static_cast<int32_t>(old_pages * kPageSize);
  count[listed++] = static_cast<int32_t>(call.total - old_pages * kPageSize);
  plan.listed[kv_head] = static_cast<int32_t>(listed);
}

// The pages of a chunk as runs of at most kPageSize tokens.
struct PageRuns {
  const int32_t* start;  // null: every page of the cache
  const int32_t* count;
  int64_t begin;
  int64_t length;  // of the chunk
  int64_t listed;  // from `begin` to the end of the head's list
  int64_t ahead;   // runs from the arithmetic to what is fetched
  int64_t total;
  int64_t Start(int64_t i) const { return start != nullptr ? start[begin + i] : (begin + i) * kPageSize; }
  int64_t Count(int64_t i) const {
    return start != nullptr ? count[begin + i] : HWY_MIN(kPageSize, total - (begin + i) * kPageSize);
  }
};

// Asks for the scales of a page that starts at `position`.
template <class Element>
HWY_INLINE void PrefetchScales(const AttentionCall& call, int64_t kv_head, int64_t position) {
  if constexpr (std::is_same_v<Element, int8_t>) {
    hwy::Prefetch(call.key_scale + call.ScaleOffset(kv_head, position));
    hwy::Prefetch(call.value_scale + call.ScaleOffset(kv_head, position));
  }
}

// scores[h][16 i + t] = query of head h times key t of run i; -infinity behind a run's end.
template <class Element, int Heads>
HWY_INLINE void ChunkScores(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t first_head, const PageRuns& runs,
                            float (*scores)[kMaxChunkPages * kPageSize]) {
  const F32 d;
  const Quad dq;
  const int64_t dim = call.head_dim;
  const int64_t row_step = plan.padded_dim;
  const float* query = plan.query + first_head * row_step;
  const int64_t whole = dim / kLanes * kLanes;
  for (int64_t run = 0; run < HWY_MIN(runs.length, runs.ahead); ++run) {
    PrefetchBytes(call.KeyRow<Element>(kv_head, runs.Start(run)), kPageSize * call.RowBytes());
    PrefetchScales<Element>(call, kv_head, runs.Start(run));
  }
  for (int64_t run = 0; run < runs.length; ++run) {
    // Behind the chunk's keys its values are read.
    const int64_t next = run + runs.ahead;
    const Element* ahead = next < runs.length ? call.KeyRow<Element>(kv_head, runs.Start(next))
                                              : call.ValueRow<Element>(kv_head, runs.Start(HWY_MIN(next - runs.length, runs.length - 1)));
    if (next < runs.length) PrefetchScales<Element>(call, kv_head, runs.Start(next));
    const int64_t count = runs.Count(run);
    const Element* keys = call.KeyRow<Element>(kv_head, runs.Start(run));
    for (int64_t t = 0; t < count; t += 4) {
      PrefetchBytes(ahead + t * dim, 4 * call.RowBytes());
      const int64_t left = count - t - 1;
      const Element* k0 = keys + t * dim;
      const Element* k1 = k0 + HWY_MIN(left, int64_t{1}) * dim;
      const Element* k2 = k0 + HWY_MIN(left, int64_t{2}) * dim;
      const Element* k3 = k0 + HWY_MIN(left, int64_t{3}) * dim;
      VF sum[Heads][4];
      for (int h = 0; h < Heads; ++h) {
        for (int k = 0; k < 4; ++k) sum[h][k] = hn::Zero(d);
      }
      const auto add = [&](int64_t i, VF v0, VF v1, VF v2, VF v3) HWY_ATTR {
        for (int h = 0; h < Heads; ++h) {
          const VF q = hn::LoadU(d, query + h * row_step + i);
          sum[h][0] = hn::MulAdd(q, v0, sum[h][0]);
          sum[h][1] = hn::MulAdd(q, v1, sum[h][1]);
          sum[h][2] = hn::MulAdd(q, v2, sum[h][2]);
          sum[h][3] = hn::MulAdd(q, v3, sum[h][3]);
        }
      };
      for (int64_t i = 0; i < whole; i += kLanes) {
        add(i, LoadFloats(k0 + i), LoadFloats(k1 + i), LoadFloats(k2 + i), LoadFloats(k3 + i));
      }
      if (const int64_t n = dim - whole; n > 0) {
        add(whole, LoadFloats(k0 + whole, n), LoadFloats(k1 + whole, n), LoadFloats(k2 + whole, n), LoadFloats(k3 + whole, n));
      }
      VQuad scale = hn::Undefined(dq);  // of the tokens' keys; behind the run's end whatever the page holds
      if constexpr (std::is_same_v<Element, int8_t>) {
        const hn::Rebind<hwy::float16_t, Quad> half;
        scale = hn::PromoteTo(dq, hn::LoadU(half, call.key_scale + call.ScaleOffset(kv_head, runs.Start(run) + t)));
      }
      for (int h = 0; h < Heads; ++h) {
        VQuad four = SumOfEach(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
        if constexpr (std::is_same_v<Element, int8_t>) four = hn::Mul(four, scale);
        hn::StoreU(four, dq, scores[h] + run * kPageSize + t);
      }
    }
    for (int h = 0; h < Heads; ++h) {
      for (int64_t t = count; t < kPageSize; ++t) scores[h][run * kPageSize + t] = -std::numeric_limits<float>::infinity();
    }
  }
}

// values[h][i] = sum over tokens of weights[h][token] * value[token][i] for Vectors * kLanes channels from `channel` on.
template <class Element, int Heads, int Vectors, bool kPartial>
HWY_INLINE void ChunkValues(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, const PageRuns& runs,
                            const float (*weights)[kMaxChunkPages * kPageSize], int64_t channel, float* values) {
  const F32 d;
  const int64_t dim = call.head_dim;
  VF sum[Heads][Vectors];
  for (int h = 0; h < Heads; ++h) {
    for (int i = 0; i < Vectors; ++i) sum[h][i] = hn::Zero(d);
  }
  for (int64_t run = 0; run < runs.length; ++run) {
    const int64_t count = runs.Count(run);
    const Element* row = call.ValueRow<Element>(kv_head, runs.Start(run)) + channel;
    // Behind the chunk's values, the next chunk's keys are read, as a rule by the same thread.
    const int64_t next = run + runs.ahead;
    const Element* ahead = next < runs.length ? call.ValueRow<Element>(kv_head, runs.Start(next))
                                              : call.KeyRow<Element>(kv_head, runs.Start(HWY_MIN(next, runs.listed - 1)));
    for (int64_t t = 0; t < count; ++t, row += dim) {
      if (channel == 0) PrefetchBytes(ahead + t * dim, call.RowBytes());
      VF v[Vectors];
      for (int i = 0; i < Vectors; ++i) v[i] = kPartial ? LoadFloats(row, dim - channel) : LoadFloats(row + i * kLanes);
      for (int h = 0; h < Heads; ++h) {
        const VF weight = hn::Set(d, weights[h][run * kPageSize + t]);
        for (int i = 0; i < Vectors; ++i) sum[h][i] = hn::MulAdd(weight, v[i], sum[h][i]);
      }
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int i = 0; i < Vectors; ++i) hn::StoreU(sum[h][i], d, values + h * plan.padded_dim + channel + i * kLanes);
  }
}

template <class Element, int Heads>
void ChunkHeads(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t head_in_group, int64_t chunk, const PageRuns& runs) {
  const F32 d;
  HWY_ALIGN float scores[Heads][kMaxChunkPages * kPageSize];
  ChunkScores<Element, Heads>(call, plan, kv_head, kv_head * call.group + head_in_group, runs, scores);
  const int64_t padded = runs.length * kPageSize;
  const int64_t part = (kv_head * plan.chunks + chunk) * call.group + head_in_group;
  for (int h = 0; h < Heads; ++h) {
    VF highest = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < padded; i += kLanes) highest = hn::Max(highest, hn::LoadU(d, scores[h] + i));
    const float max = hn::ReduceMax(d, highest);
    const VF vmax = hn::Set(d, max);
    VF sum = hn::Zero(d);
    for (int64_t i = 0; i < padded; i += kLanes) {
      VF weight = Exp2(hn::Sub(hn::LoadU(d, scores[h] + i), vmax));
      sum = hn::Add(sum, weight);
      if constexpr (std::is_same_v<Element, int8_t>) {
        const int64_t position = runs.Start(i / kPageSize) + i % kPageSize;
        weight = hn::Mul(weight, LoadFloats(call.value_scale + call.ScaleOffset(kv_head, position)));
      }
      hn::StoreU(weight, d, scores[h] + i);
    }
    plan.partial_max[part + h] = max;
    plan.partial_sum[part + h] = hn::ReduceSum(d, sum);
  }
  float* values = plan.partial_values + part * plan.padded_dim;
  int64_t channel = 0;
  for (; channel + kValueVectors * kLanes <= call.head_dim; channel += kValueVectors * kLanes) {
    ChunkValues<Element, Heads, kValueVectors, false>(call, plan, kv_head, runs, scores, channel, values);
  }
  for (; channel + kLanes <= call.head_dim; channel += kLanes) {
    ChunkValues<Element, Heads, 1, false>(call, plan, kv_head, runs, scores, channel, values);
  }
  if (channel < call.head_dim) ChunkValues<Element, Heads, 1, true>(call, plan, kv_head, runs, scores, channel, values);
}

// Attention of one KV head's query heads over one chunk of its pages.
void DecodeChunk(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t chunk) {
  const int64_t listed = plan.sparse ? plan.listed[kv_head] : call.pages;
  const int64_t begin = chunk * plan.chunk_pages;
  const int64_t num_runs = HWY_MIN(plan.chunk_pages, listed - begin);
  if (num_runs <= 0) {
    // A list may be shorter than planned: the sinks' page can be among the kept ones.
    const int64_t part = (kv_head * plan.chunks + chunk) * call.group;
    for (int64_t h = 0; h < call.group; ++h) {
      plan.partial_max[part + h] = -std::numeric_limits<float>::infinity();
      plan.partial_sum[part + h] = 0.0f;
    }
    return;
  }
  const int64_t list = kv_head * (plan.max_pages + kMaxLanes);
  const PageRuns runs{plan.sparse ? plan.page_start + list : nullptr,
                      plan.page_count + list,
                      begin,
                      num_runs,
                      listed - begin,
                      DivideUp(kBytesAhead, kPageSize * call.RowBytes()),
                      call.total};
  WithElement(call, [&](auto element) HWY_ATTR {
    ForEachPass(call.group, [&](auto heads, int64_t h) HWY_ATTR {
      ChunkHeads<decltype(element), decltype(heads)::value>(call, plan, kv_head, h, chunk, runs);
    });
  });
}

// Adds up the chunks of one KV head, in their order, and writes its query heads' outputs.
void CombineChunks(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head) {
  const F32 d;
  const int64_t step = call.group * plan.padded_dim;
  for (int64_t h = 0; h < call.group; ++h) {
    const int64_t part = kv_head * plan.chunks * call.group + h;
    float* max = plan.partial_max + part;
    float* sum = plan.partial_sum + part;
    float highest = max[0];
    for (int64_t c = 1; c < plan.chunks; ++c) highest = HWY_MAX(highest, max[c * call.group]);
    float total = 0.0f;
    for (int64_t c = 0; c < plan.chunks; ++c) {
      // An empty chunk has weight 0, also where everything else is infinite.
      float& weight = max[c * call.group];
      weight = sum[c * call.group] == 0.0f ? 0.0f : hn::GetLane(Exp2(hn::Set(d, weight - highest)));
      total += weight * sum[c * call.group];
    }
    const VF scale = hn::Set(d, 1.0f / total);
    const float* values = plan.partial_values + part * plan.padded_dim;
    float* y = call.y + (kv_head * call.group + h) * call.head_dim;
    for (int64_t i = 0; i < call.head_dim; i += kLanes) {
      VF out = hn::Zero(d);
      for (int64_t c = 0; c < plan.chunks; ++c) {
        if (sum[c * call.group] == 0.0f) continue;
        out = hn::MulAdd(hn::Set(d, max[c * call.group]), hn::LoadU(d, values + c * step + i), out);
      }
      hn::StoreN(hn::Mul(out, scale), d, y + i, static_cast<size_t>(HWY_MIN(kLanes, call.head_dim - i)));
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_DECODE_INL_H_
