// One decode step: page scores, page selection, attention over one chunk of pages, combination of the chunks.
#if defined(SOL_RT_OPS_ATTENTION_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#undef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#endif

#include <algorithm>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#include "attention_math-inl.h"
#include "dot-inl.h"

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
// How far ahead of the arithmetic old pages' codes and attended pages are fetched: what memory delivers to one core within its latency,
// and not so much that the buffers for outstanding lines fill and stop the arithmetic.
inline constexpr int64_t kPagesAhead = 32;
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

// The nibbles of a page's codes that lie in the same place of `query`: 8 bits a channel, four channels of the page's four tokens in turn.
HWY_INLINE void CodeQuery(const AttentionCall& call, const DecodePlan& plan, int64_t head, const float* query) {
  const F32 d;
  const I32 di;
  const I8 d8;
  const hn::Repartition<uint16_t, I8> pairs;
  const hn::Rebind<uint8_t, decltype(pairs)> halves;
  const hn::FixedTag<uint32_t, kPageSize> page;
  VF largest = hn::Zero(d);
  for (int64_t i = 0; i < plan.padded_dim; i += kLanes) largest = hn::Max(largest, hn::Abs(hn::LoadU(d, query + i)));
  const float step = hn::ReduceMax(d, largest) / 127.0f;
  const VF steps = hn::Set(d, step);
  const auto none = hn::Eq(steps, hn::Zero(d));
  auto sum = hn::Zero(di);
  HWY_ALIGN uint8_t even[kMaxHeadDim / 2], odd[kMaxHeadDim / 2];
  for (int64_t i = 0; i < plan.padded_dim; i += kLanes) {
    const auto codes = hn::NearestInt(hn::IfThenZeroElse(none, hn::Div(hn::LoadU(d, query + i), steps)));
    sum = hn::Add(sum, codes);
    const auto both = hn::BitCast(pairs, hn::DemoteTo(d8, codes));
    hn::StoreU(hn::TruncateTo(halves, both), halves, even + i / 2);
    hn::StoreU(hn::TruncateTo(halves, hn::ShiftRight<8>(both)), halves, odd + i / 2);
  }
  int8_t* low = plan.query_low + head * plan.code_stride;
  int8_t* high = plan.query_high + head * plan.code_stride;
  int64_t at = 0;  // of four channels' codes, the same for all tokens of a page; behind the last ones the padding's zeros follow
  for (; at < call.CodeBytes(); at += 4) {
    for (const auto& [from, to] : {std::pair{even, low}, std::pair{odd, high}}) {
      uint32_t four;
      std::memcpy(&four, from + at, sizeof(four));
      hn::StoreU(hn::Set(page, four), page, reinterpret_cast<uint32_t*>(to + kPageSize * at));
    }
  }
  std::fill(low + kPageSize * at, low + plan.code_stride, int8_t{0});
  std::fill(high + kPageSize * at, high + plan.code_stride, int8_t{0});
  plan.query_step[head] = step;
  plan.query_sum[head] = static_cast<float>(hn::ReduceSum(di, sum));
}

// Rotated queries of the step: floats for attention, codes for the scores of pages.
void PrepareQueries(const AttentionCall& call, const DecodePlan& plan) {
  HWY_ALIGN float rotated[kMaxHeadDim + kMaxLanes];
  for (int64_t head = 0; head < call.heads; ++head) {
    const float* from = call.QueryRow(0, head);
    RotateRow(call, from, call.past, call.scale * kLog2E, plan.query + head * plan.padded_dim);
    if (!plan.sparse) continue;
    RotateRow(call, from, call.past, 1.0f, rotated);
    CodeQuery(call, plan, head, rotated);
  }
}

// Scores of a page's four tokens under `Heads` query heads: the highest of each.
template <int Heads>
HWY_INLINE VQuad ScoreTokens(const AttentionCall& call, const DecodePlan& plan, int64_t first_head, const uint8_t* codes, VQuad minimum, VQuad step) {
  const Quad d;
  const I32 di;
  const hn::Repartition<uint8_t, I32> d8;
  const hn::Repartition<int8_t, I32> ds;
  constexpr int64_t kBytes = 4 * kLanes;
  const auto nibble = hn::Set(d8, uint8_t{15});
  const int64_t rest = call.CodeBytes() % 4, whole = kPageSize * (call.CodeBytes() - rest);
  NibbleSum<I32, 1> sum[Heads];
  const auto add = [&](auto bytes, int64_t at) HWY_ATTR {
    const auto low = hn::And(bytes, nibble), high = hn::ShiftRight<4>(bytes);
    for (int h = 0; h < Heads; ++h) {
      const int64_t query = (first_head + h) * plan.code_stride + at;
      sum[h].Add(low, {hn::LoadU(ds, plan.query_low + query)});
      sum[h].Add(high, {hn::LoadU(ds, plan.query_high + query)});
    }
  };
  int64_t at = 0;
  for (; at + kBytes <= whole; at += kBytes) add(hn::LoadU(d8, codes + at), at);
  if (at < whole) add(hn::LoadN(d8, codes + at, static_cast<size_t>(whole - at)), at);
  if (rest != 0) {
    HWY_ALIGN uint8_t padded[kBytes] = {};
    for (int64_t i = 0; i < kPageSize * rest; ++i) padded[i / rest * 4 + i % rest] = codes[whole + i];
    add(hn::Load(d8, padded), whole);
  }
  VQuad best = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int h = 0; h < Heads; ++h) {
    const int64_t head = first_head + h;
    const VQuad dot = hn::ConvertTo(d, AddBlocks(di, sum[h].Total()));
    const VQuad score = hn::MulAdd(step, dot, hn::Mul(minimum, hn::Set(d, plan.query_sum[head])));
    best = hn::Max(best, hn::Mul(score, hn::Set(d, plan.query_step[head])));
  }
  return best;
}

// Scores of the old pages [begin, end) of one KV head; `begin` is a multiple of 4.
void ScorePages(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t begin, int64_t end) {
  const Quad d;
  const hn::Rebind<hwy::float16_t, Quad> half;
  const hn::RebindToSigned<Quad> di;
  int32_t* scores = plan.page_scores + kv_head * plan.score_stride;
  HWY_ALIGN float four[4] = {};
  for (int64_t page = begin; page < end; page += 4) {
    if (page + kPagesAhead < end) {
      PrefetchBytes(call.PageCodes(kv_head, page + kPagesAhead), 4 * kPageSize * call.CodeBytes());
      hwy::Prefetch(call.PageRange(kv_head, page + kPagesAhead));
    }
    for (int64_t i = 0; i < HWY_MIN(end - page, int64_t{4}); ++i) {
      const hwy::float16_t* range = call.PageRange(kv_head, page + i);
      const VQuad minimum = hn::PromoteTo(d, hn::LoadU(half, range)), step = hn::PromoteTo(d, hn::LoadU(half, range + kPageSize));
      VQuad best = hn::Set(d, -std::numeric_limits<float>::infinity());
      ForEachPass(call.group, [&](auto heads, int64_t h) HWY_ATTR {
        constexpr int kHeads = decltype(heads)::value;
        best = hn::Max(best, ScoreTokens<kHeads>(call, plan, kv_head * call.group + h, call.PageCodes(kv_head, page + i), minimum, step));
      });
      four[i] = hn::ReduceMax(d, best);
    }
    // Integers of the same order as the floats; -0 counts as 0.
    const auto bits = hn::BitCast(di, hn::Add(hn::Load(d, four), hn::Zero(d)));
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
    listed += static_cast<int64_t>(hn::CompressStore(hn::ShiftLeft<2>(index), kept, d, start + listed));
  }
  static_assert(kPageSize == 1 << 2);
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
  for (int h = 0; h < Heads; ++h) {
    for (int64_t i = runs.length * kPageSize; i < RoundUp(runs.length * kPageSize, kLanes); ++i) {
      scores[h][i] = -std::numeric_limits<float>::infinity();
    }
  }
  const int64_t padded = RoundUp(runs.length * kPageSize, kLanes);
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
        HWY_ALIGN hwy::float16_t scales[HWY_MAX(kLanes, kPageSize)] = {};
        for (int64_t t = 0; t < kLanes && i + t < runs.length * kPageSize; t += kPageSize) {
          std::copy_n(call.value_scale + call.ScaleOffset(kv_head, runs.Start((i + t) / kPageSize)), kPageSize, scales + t);
        }
        weight = hn::Mul(weight, LoadFloats(scales));
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
