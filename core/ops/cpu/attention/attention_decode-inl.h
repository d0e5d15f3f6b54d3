// Attention of one new token, in the tasks of Attention::Weigh, Score and Attend. H query heads read Hk KV heads, H / Hk each.
//
//   PrepareQueries   q [H, D] rotated; and coded for the scores: c = round(q / a), a = max |q| / 127
//   WeighTokens      z = softmax_scale log2(e) a (step sum(code c) + m sum(c)) of an old token and query head, from the key codes; its weight
//                    is 2^(z - the highest z of the block of kBlockTokens tokens)
//   ScoreTokens      score [Hk, old tokens] = the sum over the KV head's query heads of the weights' shares of 1
//   SelectTokens     the 4 Hk kv_pages pairs of KV head and old token of the highest scores; lists of tokens [Hk, …], cut into chunks
//   DecodeChunk      of one chunk of a KV head's list: max, sum and sum of v of 2^(softmax_scale log2(e) q k - max)
//   CombineChunks    y [H, D] = the chunks' sums of v over their sum, brought to one maximum
//
// Where all tokens are read, the first four are not needed but for q, and the list is every token of the cache. With a window, the cache is
// what lies in it, and up to three tokens before it, which nothing reads.
//
// Lanes: while codes are multiplied, a 32-bit lane is a part of one token's sum, then one token; a score has one token a lane; a key, a
// value and y have one channel a lane.

#if defined(SOL_RT_OPS_ATTENTION_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#undef SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_DECODE_INL_H_
#endif

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <new>
#include <type_traits>
#include <utility>

#include "cpu/attention/attention_math-inl.h"
#include "cpu/matmul/dot-inl.h"

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
// Heads whose codes of a query stay in registers, two vectors for each nibble.
inline constexpr int kMaxHeldHeads = 4;
// Distance at which old pages' codes and attended tokens are fetched before the arithmetic: what memory delivers to one core within its latency, and
// not so much that the buffers for outstanding lines fill and stop the arithmetic.
inline constexpr int64_t kPagesAhead = 32;
inline constexpr int64_t kBytesAhead = 8192;
// Smaller scores are alike: they are too small to be told from what rounding leaves of them.
inline constexpr float kLowestScore = 0x1p-100f;

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
  int64_t at = 0;  // of four channels' codes, the same for all tokens of a page; after the last ones the padding's zeros follow
  for (; at < call.CodeBytes(); at += 4) {
    for (const auto& [from, to] : {std::pair{even, low}, std::pair{odd, high}}) {
      uint32_t four;
      std::memcpy(&four, from + at, sizeof(four));
      hn::StoreU(hn::Set(page, four), page, reinterpret_cast<uint32_t*>(to + kPageSize * at));
    }
  }
  std::fill(low + kPageSize * at, low + plan.code_stride, int8_t{0});
  std::fill(high + kPageSize * at, high + plan.code_stride, int8_t{0});
  plan.query_step[head] = step * call.scale * kLog2E;
  plan.query_sum[head] = static_cast<float>(hn::ReduceSum(di, sum));
}

// Rotated queries of the step: floats for attention, codes for the scores of old tokens.
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

// Pages whose tokens fill a vector of floats.
inline constexpr int64_t kPages = kLanes / kPageSize;

// Of two vectors in turn, the blocks of 128 bits with an even number, and those with an odd one.
template <class V>
HWY_INLINE void SplitBlocks(V a, V b, V& even, V& odd) {
  const hn::DFromV<V> d;
  if constexpr (kPages == 1) {
    even = a;
    odd = b;
  } else if constexpr (kPages == 2) {
    even = hn::ConcatLowerLower(d, b, a);
    odd = hn::ConcatUpperUpper(d, b, a);
  } else {
    HWY_ALIGN static constexpr int32_t kEven[16] = {0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27};
    HWY_ALIGN static constexpr int32_t kOdd[16] = {4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31};
    even = hn::TwoTablesLookupLanes(d, a, b, hn::SetTableIndices(d, kEven));
    odd = hn::TwoTablesLookupLanes(d, a, b, hn::SetTableIndices(d, kOdd));
  }
}

// Block p of the result is the sum of the blocks of sums[p].
template <class V>
HWY_INLINE V SumBlocks(const V (&sums)[kPages]) {
  if constexpr (kPages == 1) {
    return sums[0];
  } else {
    V half[kPages / 2];
    for (int64_t i = 0; i < kPages / 2; ++i) {
      V even, odd;
      SplitBlocks(sums[2 * i], sums[2 * i + 1], even, odd);
      half[i] = hn::Add(even, odd);
    }
    if constexpr (kPages == 2) {
      return half[0];
    } else {
      V even, odd;
      SplitBlocks(half[0], half[1], even, odd);
      return hn::Add(even, odd);
    }
  }
}

// Sums of products of a page's codes with those of `Heads` queries: lane 4 i + t is a part of token t's.
template <int Heads>
using PageSums = hn::Vec<I32>[Heads];

// Adds the products of a vector of codes.
template <int Heads, class VU, class VX>
HWY_INLINE void AddProducts(VU bytes, const VX (&low)[Heads], const VX (&high)[Heads], PageSums<Heads>& sums) {
  const hn::DFromV<VU> d8;
  const auto even = hn::And(bytes, hn::Set(d8, uint8_t{15})), odd = hn::ShiftRight<4>(bytes);
  for (int h = 0; h < Heads; ++h) {
    sums[h] = DotNibbles(I32(), even, low[h], sums[h]);
    sums[h] = DotNibbles(I32(), odd, high[h], sums[h]);
  }
}

// Codes of queries, and their products with those of kPages pages. `Vectors`: how many the codes of a page fill, where that is known and
// few enough that the queries stay in registers, else 0.
template <int Heads, int Vectors>
class CodedQueries {
 public:
  CodedQueries(const AttentionCall& call, const DecodePlan& plan, int64_t first_head)
      : rest_(call.CodeBytes() % 4),
        whole_(kPageSize * (call.CodeBytes() - rest_)),
        stride_(plan.code_stride),
        low_(plan.query_low + first_head * stride_),
        high_(plan.query_high + first_head * stride_) {
    for (int i = 0; i < Vectors; ++i) Load(i * kBytes, low_held_[i], high_held_[i]);
  }

  // A token a lane.
  HWY_INLINE void Multiply(const uint8_t* const (&pages)[kPages], hn::Vec<I32> (&products)[Heads]) const {
    hn::Vec<I32> sums[Heads][kPages];
    for (int64_t p = 0; p < kPages; ++p) {
      PageSums<Heads> page;
      for (auto& sum : page) sum = hn::Zero(I32());
      if constexpr (Vectors > 0) {
        for (int i = 0; i < Vectors; ++i) AddProducts<Heads>(hn::LoadU(U8(), pages[p] + i * kBytes), low_held_[i], high_held_[i], page);
      } else {
        AddPage(pages[p], page);
      }
      for (int h = 0; h < Heads; ++h) sums[h][p] = page[h];
    }
    for (int h = 0; h < Heads; ++h) products[h] = SumBlocks(sums[h]);
  }

 private:
  using U8 = hn::Repartition<uint8_t, I32>;
  using S8 = hn::Repartition<int8_t, I32>;
  using VX = hn::Vec<S8>;
  static constexpr int64_t kBytes = 4 * kLanes;

  HWY_INLINE void Load(int64_t at, VX (&low)[Heads], VX (&high)[Heads]) const {
    for (int h = 0; h < Heads; ++h) {
      low[h] = hn::LoadU(S8(), low_ + h * stride_ + at);
      high[h] = hn::LoadU(S8(), high_ + h * stride_ + at);
    }
  }

  HWY_INLINE void AddPage(const uint8_t* codes, PageSums<Heads>& sums) const {
    const U8 d8;
    VX low[Heads], high[Heads];
    int64_t at = 0;
    for (; at + kBytes <= whole_; at += kBytes) {
      Load(at, low, high);
      AddProducts<Heads>(hn::LoadU(d8, codes + at), low, high, sums);
    }
    if (at < whole_) {
      Load(at, low, high);
      AddProducts<Heads>(hn::LoadN(d8, codes + at, static_cast<size_t>(whole_ - at)), low, high, sums);
    }
    if (rest_ != 0) {
      HWY_ALIGN uint8_t padded[kBytes] = {};
      for (int64_t i = 0; i < kPageSize * rest_; ++i) padded[i / rest_ * 4 + i % rest_] = codes[whole_ + i];
      Load(whole_, low, high);
      AddProducts<Heads>(hn::Load(d8, padded), low, high, sums);
    }
  }

  const int64_t rest_, whole_, stride_;
  const int8_t* const low_;
  const int8_t* const high_;
  VX low_held_[HWY_MAX(Vectors, 1)][Heads], high_held_[HWY_MAX(Vectors, 1)][Heads];
};

// `count` scores, and after them the lowest one.
HWY_INLINE VF LoadScores(const float* scores, int64_t count) {
  const VF lowest = hn::Set(F32(), -std::numeric_limits<float>::infinity());
  return hn::LoadNOr(lowest, F32(), scores, static_cast<size_t>(HWY_MIN(kLanes, count)));
}

// The maximum of the scores that a lane is given.
HWY_INLINE VF Highest(const float* scores, int64_t count) {
  VF highest = hn::Set(F32(), -std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; i += kLanes) highest = hn::Max(highest, LoadScores(scores + i, count - i));
  return highest;
}

// Scores of the old tokens of a block, in units of log2, and their maximum, for the heads from `first_head` on.
template <int Heads, int Vectors>
HWY_INLINE void BlockScores(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t first_head, int64_t block) {
  const F32 d;
  const int64_t begin = block * kBlockTokens, end = HWY_MIN(begin + kBlockTokens, plan.old_tokens);
  const int64_t last_page = end / kPageSize - 1, page_bytes = kPageSize * call.CodeBytes();
  const CodedQueries<Heads, Vectors> queries(call, plan, first_head);
  VF highest[Heads], factor[Heads], sum[Heads];
  float* scores[Heads];
  for (int h = 0; h < Heads; ++h) {
    highest[h] = hn::Set(d, -std::numeric_limits<float>::infinity());
    factor[h] = hn::Set(d, plan.query_step[first_head + h]);
    sum[h] = hn::Set(d, plan.query_sum[first_head + h]);
    scores[h] = plan.token_weights + (first_head + h) * plan.score_stride;
  }
  const auto score = [&](int64_t token, const uint8_t* const (&pages)[kPages], const hwy::float16_t* ranges) HWY_ATTR {
    VF minimum, step;
    SplitBlocks(LoadFloats(ranges), LoadFloats(ranges + kLanes), minimum, step);
    hn::Vec<I32> products[Heads];
    queries.Multiply(pages, products);
    for (int h = 0; h < Heads; ++h) {
      const VF total = hn::MulAdd(step, hn::ConvertTo(d, products[h]), hn::Mul(minimum, sum[h]));
      VF result = hn::Mul(total, factor[h]);
      if (call.softcap > 0.0f) result = SoftCap(result, call.softcap * kLog2E);
      highest[h] = hn::Max(highest[h], result);
      hn::StoreU(result, d, scores[h] + token);
    }
  };
  const uint8_t* pages[kPages];
  int64_t token = begin;
  for (; token + kLanes <= end; token += kLanes) {
    const int64_t page = token / kPageSize;
    const uint8_t* codes = call.PageCodes(kv_head, page);
    PrefetchBytes(codes + kPagesAhead * page_bytes, kPages * page_bytes);
    PrefetchLine(call.PageRange(kv_head, page + kPagesAhead));
    for (int64_t p = 0; p < kPages; ++p) pages[p] = codes + p * page_bytes;
    score(token, pages, call.PageRange(kv_head, page));
  }
  if (token < end) {  // after the last page it stands once more
    HWY_ALIGN hwy::float16_t ranges[2 * kLanes];
    for (int64_t p = 0; p < kPages; ++p) {
      const int64_t page = HWY_MIN(token / kPageSize + p, last_page);
      pages[p] = call.PageCodes(kv_head, page);
      std::copy_n(call.PageRange(kv_head, page), 2 * kPageSize, ranges + 2 * kPageSize * p);
    }
    score(token, pages, ranges);
  }
  if (block == 0 && call.skip > 0) {
    for (int h = 0; h < Heads; ++h) {
      std::fill(scores[h], scores[h] + call.skip, -std::numeric_limits<float>::infinity());
      highest[h] = Highest(scores[h], end);
    }
  }
  for (int h = 0; h < Heads; ++h) plan.block_max[(first_head + h) * plan.token_blocks + block] = hn::ReduceMax(d, highest[h]);
}

// Weights of the old tokens of one block under each query head of a KV head, over the block's highest, and their sums.
void WeighTokens(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t block) {
  const F32 d;
  ForEachPass(call.group, [&](auto heads, int64_t h) HWY_ATTR {
    constexpr int kHeads = decltype(heads)::value;
    const int64_t first = kv_head * call.group + h;
    if (kHeads <= kMaxHeldHeads && call.CodeBytes() == 2 * kLanes) {
      BlockScores<HWY_MIN(kHeads, kMaxHeldHeads), 2>(call, plan, kv_head, first, block);
    } else {
      BlockScores<kHeads, 0>(call, plan, kv_head, first, block);
    }
  });
  const int64_t begin = block * kBlockTokens, end = HWY_MIN(begin + kBlockTokens, plan.old_tokens), whole = end / kLanes * kLanes;
  for (int64_t head = kv_head * call.group; head < (kv_head + 1) * call.group; ++head) {
    const VF max = hn::Set(d, plan.block_max[head * plan.token_blocks + block]);
    float* weights = plan.token_weights + head * plan.score_stride;
    VF sum = hn::Zero(d);
    for (int64_t i = begin; i < whole; i += kLanes) {
      const VF weight = Exp2(hn::Sub(hn::LoadU(d, weights + i), max));
      sum = hn::Add(sum, weight);
      hn::StoreU(weight, d, weights + i);
    }
    if (whole < end) {
      const auto there = hn::FirstN(d, static_cast<size_t>(end - whole));
      const VF weight = hn::IfThenElseZero(there, Exp2(hn::Sub(hn::LoadU(d, weights + whole), max)));
      sum = hn::Add(sum, weight);
      hn::StoreU(weight, d, weights + whole);
    }
    plan.block_sum[head * plan.token_blocks + block] = hn::ReduceSum(d, sum);
  }
}

// Factor on a block's weights of one head that makes them add up to 1 over all old tokens.
HWY_NOINLINE inline float BlockShare(const DecodePlan& plan, int64_t head, int64_t block) {
  const F32 d;
  const float* max = plan.block_max + head * plan.token_blocks;
  const float* sum = plan.block_sum + head * plan.token_blocks;
  const VF highest = hn::Set(d, hn::ReduceMax(d, Highest(max, plan.token_blocks)));
  VF total = hn::Zero(d);
  for (int64_t i = 0; i < plan.token_blocks; i += kLanes) {
    const int64_t count = plan.token_blocks - i;
    const VF sums = hn::LoadN(d, sum + i, static_cast<size_t>(HWY_MIN(kLanes, count)));
    total = hn::MulAdd(sums, Exp2(hn::Sub(LoadScores(max + i, count), highest)), total);
  }
  return hn::GetLane(Exp2(hn::Sub(hn::Set(d, max[block]), highest))) / hn::ReduceSum(d, total);
}

// Scores of the old tokens of one block of a KV head: sums over its query heads. Smaller ones than kLowestScore, and what is not a number,
// count as 0.
void ScoreTokens(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t block) {
  const F32 d;
  const I32 di;
  const int64_t first = kv_head * call.group;
  const int64_t begin = block * kBlockTokens, end = HWY_MIN(begin + kBlockTokens, plan.old_tokens);
  float share[kMaxGroup];
  for (int64_t h = 0; h < call.group; ++h) share[h] = BlockShare(plan, first + h, block);
  int32_t* scores = plan.token_scores + kv_head * plan.score_stride;
  const VF lowest = hn::Set(d, kLowestScore);
  for (int64_t i = begin; i < end; i += kLanes) {
    const float* weights = plan.token_weights + first * plan.score_stride + i;
    VF sum = hn::Zero(d);
    for (int64_t h = 0; h < call.group; ++h) sum = hn::MulAdd(hn::Set(d, share[h]), hn::LoadU(d, weights + h * plan.score_stride), sum);
    hn::StoreU(hn::BitCast(di, hn::IfThenElseZero(hn::Ge(sum, lowest), sum)), di, scores + i);
  }
  if (block == 0) std::fill(scores, scores + call.skip, -1);
  if (end == plan.old_tokens) std::fill(scores + end, scores + plan.score_stride, -1);
}

HWY_INLINE int64_t CountAtLeast(const int32_t* scores, int64_t count, int32_t threshold) {
  const I32 d;
  const auto limit = hn::Set(d, threshold);
  auto found = hn::Zero(d);
  for (int64_t i = 0; i < count; i += kLanes) {
    found = hn::Sub(found, hn::VecFromMask(d, hn::Ge(hn::LoadU(d, scores + i), limit)));
  }
  return hn::ReduceSum(d, found);
}

// Writes the lanes of the mask one after the other, and something after them; returns how many they are. CompressStore takes over a
// hundred cycles on some processors.
template <class M>
HWY_INLINE int64_t StoreKept(hn::Vec<I32> v, M kept, int32_t* to) {
  hn::StoreU(hn::Compress(v, kept), I32(), to);
  return static_cast<int64_t>(hn::CountTrue(I32(), kept));
}

// A score and how many reach it.
struct Threshold {
  int32_t score;
  int64_t reached;
};

// The largest score that at least `wanted` of `count` scores reach, where `low` is known to be one that so many reach and `beyond` one that
// fewer do; at most `tolerance` below it.
HWY_INLINE Threshold SearchThreshold(const int32_t* scores, int64_t count, int64_t wanted, Threshold low, int32_t beyond, int32_t tolerance) {
  while (beyond - low.score > tolerance && low.reached != wanted) {
    const int32_t middle = low.score + (beyond - low.score) / 2;
    const int64_t reached = CountAtLeast(scores, count, middle);
    if (reached >= wanted) {
      low = {middle, reached};
    } else {
      beyond = middle;
    }
  }
  return low;
}

// The largest score that at least `wanted` > 0 of `count` scores reach, a multiple of kLanes, at least so many of them not negative. Looks
// at most of them once: a sample says between which two scores it should lie. `scratch` has room for all and a vector.
HWY_INLINE Threshold FindThreshold(const int32_t* scores, int64_t count, int64_t wanted, int32_t* scratch) {
  const I32 d;
  constexpr int64_t kStep = 8;              // vectors from one of the sample to the next
  constexpr int32_t kTolerance = 1 << 16;   // of the sample's thresholds: 2^-7 of a score
  constexpr int32_t kBeyond = 0x7F800001;   // all scores are finite floats
  const int64_t samples = DivideUp(count / kLanes, kStep) * kLanes, expected = wanted * samples / count;
  const auto spread = static_cast<int64_t>(6 * std::sqrt(static_cast<float>(expected))) + 1;
  if (expected > spread) {
    for (int64_t i = 0; i < samples; i += kLanes) hn::StoreU(hn::LoadU(d, scores + i * kStep), d, scratch + i);
    const Threshold low = SearchThreshold(scratch, samples, expected + spread, {0, samples}, kBeyond, kTolerance);
    const Threshold high = SearchThreshold(scratch, samples, expected - spread, low, kBeyond, kTolerance);
    const int32_t beyond = high.score + kTolerance;
    const auto from = hn::Set(d, low.score), to = hn::Set(d, beyond);
    auto above = hn::Zero(d);
    int64_t between = 0;
    for (int64_t i = 0; i < count; i += kLanes) {
      const auto score = hn::LoadU(d, scores + i);
      const auto is_above = hn::Ge(score, to);
      above = hn::Sub(above, hn::VecFromMask(d, is_above));
      between += StoreKept(score, hn::AndNot(is_above, hn::Ge(score, from)), scratch + between);
    }
    const int64_t more = hn::ReduceSum(d, above);
    if (more < wanted && wanted <= more + between) {
      hn::StoreU(hn::Set(d, -1), d, scratch + between);
      const Threshold found = SearchThreshold(scratch, between, wanted - more, {low.score, between}, beyond, 1);
      return {found.score, more + found.reached};
    }
  }
  return SearchThreshold(scores, count, wanted, {0, CountAtLeast(scores, count, 0)}, kBeyond, 1);
}

// Lists the tokens that every KV head attends: of all heads' old ones together the best, sinks, and the newest page. Cuts the lists.
void SelectTokens(const AttentionCall& call, const DecodePlan& plan) {
  const I32 d;
  const int64_t count = call.kv_heads * plan.score_stride, wanted = call.kv_heads * call.kv_pages * kPageSize;
  int32_t threshold = std::numeric_limits<int32_t>::max();
  // Among equal scores the first ones win: the last one taken bounds them.
  int64_t last_tie = -1;
  if (wanted > 0) {
    const Threshold found = FindThreshold(plan.token_scores, count, wanted, plan.candidates);
    threshold = found.score;
    last_tie = count;
    if (found.reached > wanted) {
      int64_t ties = wanted - CountAtLeast(plan.token_scores, count, threshold + 1);
      for (last_tie = -1; ties > 0; ties -= plan.token_scores[last_tie] == threshold) ++last_tie;
    }
  }

  const auto limit = hn::Set(d, threshold);
  const auto sink_end = hn::Set(d, static_cast<int32_t>(HWY_MIN(call.sinks, plan.old_tokens)));
  const auto seen = hn::Set(d, static_cast<int32_t>(call.skip));
  plan.first_chunk[0] = 0;
  for (int64_t head = 0; head < call.kv_heads; ++head) {
    const int32_t* scores = plan.token_scores + head * plan.score_stride;
    const auto tie_end = hn::Set(d, static_cast<int32_t>(HWY_MAX(last_tie - head * plan.score_stride, int64_t{-1})));
    int32_t* tokens = plan.tokens + head * plan.list_stride;
    int64_t listed = 0;
    for (int64_t i = 0; i < plan.old_tokens; i += kLanes) {
      const auto position = hn::Iota(d, static_cast<int32_t>(i));
      const auto score = hn::LoadU(d, scores + i);
      const auto kept = hn::Or(hn::Gt(score, limit), hn::And(hn::Eq(score, limit), hn::Le(position, tie_end)));
      const auto sink = hn::And(hn::Lt(position, sink_end), hn::Ge(position, seen));
      listed += StoreKept(position, hn::Or(kept, sink), tokens + listed);
    }
    for (int64_t position = HWY_MAX(plan.old_tokens, call.skip); position < call.total; ++position) tokens[listed++] = static_cast<int32_t>(position);
    plan.listed[head] = static_cast<int32_t>(listed);
    const auto chunks = static_cast<int32_t>(DivideUp(listed, plan.chunk_tokens));
    plan.first_chunk[head + 1] = plan.first_chunk[head] + chunks;
    new (plan.pending_chunks + head) std::atomic<int32_t>(chunks);
  }
}

// The tokens of a chunk.
struct TokenList {
  const int32_t* listed;  // null: every token of the cache
  int64_t begin;
  int64_t length;  // of the chunk
  int64_t left;    // from `begin` to the end of the head's list
  int64_t ahead;   // tokens from the arithmetic to what is fetched
  int64_t At(int64_t i) const { return listed != nullptr ? listed[begin + i] : begin + i; }
};

// Asks for the scales of the token at `position`.
template <class Element>
HWY_INLINE void PrefetchScales(const AttentionCall& call, int64_t kv_head, int64_t position) {
  if constexpr (std::is_same_v<Element, int8_t>) {
    PrefetchLine(call.key_scale + call.ScaleOffset(kv_head, position));
    PrefetchLine(call.value_scale + call.ScaleOffset(kv_head, position));
  }
}

// scores[h][t] = query of head h times key of token t.
template <class Element, int Heads>
HWY_INLINE void ChunkScores(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t first_head, const TokenList& tokens,
                            float (*scores)[kMaxChunkTokens]) {
  const F32 d;
  const Quad dq;
  const int64_t dim = call.head_dim;
  const int64_t row_step = plan.padded_dim;
  const float* query = plan.query + first_head * row_step;
  const int64_t whole = dim / kLanes * kLanes;
  const int64_t last = tokens.length - 1;
  for (int64_t t = 0; t < HWY_MIN(tokens.length, tokens.ahead); ++t) {
    PrefetchBytes(call.KeyRow<Element>(kv_head, tokens.At(t)), call.RowBytes());
    PrefetchScales<Element>(call, kv_head, tokens.At(t));
  }
  for (int64_t t = 0; t < tokens.length; t += 4) {
    for (int64_t i = t + tokens.ahead; i < t + tokens.ahead + 4; ++i) {
      // After the chunk's keys its values are read.
      if (i < tokens.length) {
        PrefetchBytes(call.KeyRow<Element>(kv_head, tokens.At(i)), call.RowBytes());
        PrefetchScales<Element>(call, kv_head, tokens.At(i));
      } else {
        PrefetchBytes(call.ValueRow<Element>(kv_head, tokens.At(HWY_MIN(i - tokens.length, last))), call.RowBytes());
      }
    }
    const int64_t at[4] = {tokens.At(t), tokens.At(HWY_MIN(t + 1, last)), tokens.At(HWY_MIN(t + 2, last)), tokens.At(HWY_MIN(t + 3, last))};
    const Element* k0 = call.KeyRow<Element>(kv_head, at[0]);
    const Element* k1 = call.KeyRow<Element>(kv_head, at[1]);
    const Element* k2 = call.KeyRow<Element>(kv_head, at[2]);
    const Element* k3 = call.KeyRow<Element>(kv_head, at[3]);
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
    VQuad scale = hn::Undefined(dq);
    if constexpr (std::is_same_v<Element, int8_t>) {
      const hn::Rebind<hwy::float16_t, Quad> half;
      HWY_ALIGN hwy::float16_t scales[4];
      for (int k = 0; k < 4; ++k) scales[k] = call.key_scale[call.ScaleOffset(kv_head, at[k])];
      scale = hn::PromoteTo(dq, hn::Load(half, scales));
    }
    for (int h = 0; h < Heads; ++h) {
      VQuad four = SumOfEach(sum[h][0], sum[h][1], sum[h][2], sum[h][3]);
      if constexpr (std::is_same_v<Element, int8_t>) four = hn::Mul(four, scale);
      hn::StoreU(four, dq, scores[h] + t);
    }
  }
}

// values[h][i] = sum over tokens of weights[h][token] * value[token][i] for Vectors * kLanes channels from `channel` on.
template <class Element, int Heads, int Vectors, bool kPartial>
HWY_INLINE void ChunkValues(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, const TokenList& tokens,
                            const float (*weights)[kMaxChunkTokens], int64_t channel, float* values) {
  const F32 d;
  VF sum[Heads][Vectors];
  for (int h = 0; h < Heads; ++h) {
    for (int i = 0; i < Vectors; ++i) sum[h][i] = hn::Zero(d);
  }
  for (int64_t t = 0; t < tokens.length; ++t) {
    const Element* row = call.ValueRow<Element>(kv_head, tokens.At(t)) + channel;
    if (channel == 0) {
      // After the chunk's values, the next chunk's keys are read, as a rule by the same thread.
      const int64_t next = t + tokens.ahead;
      const Element* ahead = next < tokens.length ? call.ValueRow<Element>(kv_head, tokens.At(next))
                                                  : call.KeyRow<Element>(kv_head, tokens.At(HWY_MIN(next, tokens.left - 1)));
      PrefetchBytes(ahead, call.RowBytes());
    }
    VF v[Vectors];
    for (int i = 0; i < Vectors; ++i) v[i] = kPartial ? LoadFloats(row, call.head_dim - channel) : LoadFloats(row + i * kLanes);
    for (int h = 0; h < Heads; ++h) {
      const VF weight = hn::Set(d, weights[h][t]);
      for (int i = 0; i < Vectors; ++i) sum[h][i] = hn::MulAdd(weight, v[i], sum[h][i]);
    }
  }
  for (int h = 0; h < Heads; ++h) {
    for (int i = 0; i < Vectors; ++i) hn::StoreU(sum[h][i], d, values + h * plan.padded_dim + channel + i * kLanes);
  }
}

template <class Element, int Heads>
void ChunkHeads(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t head_in_group, int64_t chunk, const TokenList& tokens) {
  const F32 d;
  HWY_ALIGN float scores[Heads][kMaxChunkTokens];
  ChunkScores<Element, Heads>(call, plan, kv_head, kv_head * call.group + head_in_group, tokens, scores);
  const int64_t padded = RoundUp(tokens.length, kLanes);
  const int64_t row = chunk * call.group + head_in_group;
  for (int h = 0; h < Heads; ++h) {
    for (int64_t i = 0; call.softcap > 0.0f && i < tokens.length; i += kLanes) {
      hn::StoreU(SoftCap(hn::LoadU(d, scores[h] + i), call.softcap * kLog2E), d, scores[h] + i);
    }
    std::fill(scores[h] + tokens.length, scores[h] + padded, -std::numeric_limits<float>::infinity());
    VF highest = hn::Set(d, -std::numeric_limits<float>::infinity());
    for (int64_t i = 0; i < padded; i += kLanes) highest = hn::Max(highest, hn::LoadU(d, scores[h] + i));
    const float max = hn::ReduceMax(d, highest);
    const VF vmax = hn::Set(d, max);
    VF sum = hn::Zero(d);
    for (int64_t i = 0; i < padded; i += kLanes) {
      VF weight = Exp2(hn::Sub(hn::LoadU(d, scores[h] + i), vmax));
      sum = hn::Add(sum, weight);
      if constexpr (std::is_same_v<Element, int8_t>) {
        HWY_ALIGN hwy::float16_t scales[kLanes] = {};
        for (int64_t t = 0; t < HWY_MIN(kLanes, tokens.length - i); ++t) scales[t] = call.value_scale[call.ScaleOffset(kv_head, tokens.At(i + t))];
        weight = hn::Mul(weight, LoadFloats(scales));
      }
      hn::StoreU(weight, d, scores[h] + i);
    }
    plan.partial_max[row + h] = max;
    plan.partial_sum[row + h] = hn::ReduceSum(d, sum);
  }
  float* values = plan.partial_values + row * plan.padded_dim;
  int64_t channel = 0;
  for (; channel + kValueVectors * kLanes <= call.head_dim; channel += kValueVectors * kLanes) {
    ChunkValues<Element, Heads, kValueVectors, false>(call, plan, kv_head, tokens, scores, channel, values);
  }
  for (; channel + kLanes <= call.head_dim; channel += kLanes) {
    ChunkValues<Element, Heads, 1, false>(call, plan, kv_head, tokens, scores, channel, values);
  }
  if (channel < call.head_dim) ChunkValues<Element, Heads, 1, true>(call, plan, kv_head, tokens, scores, channel, values);
}

// Attention of one KV head's query heads over one chunk of its tokens.
void DecodeChunk(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t chunk) {
  const int64_t listed = plan.sparse ? plan.listed[kv_head] : call.total;
  const int64_t begin = (chunk - plan.first_chunk[kv_head]) * plan.chunk_tokens + (plan.sparse ? 0 : call.skip);
  const TokenList tokens{plan.sparse ? plan.tokens + kv_head * plan.list_stride : nullptr, begin, HWY_MIN(plan.chunk_tokens, listed - begin),
                         listed - begin, DivideUp(kBytesAhead, call.RowBytes())};
  WithElement(call, [&](auto element) HWY_ATTR {
    ForEachPass(call.group, [&](auto heads, int64_t h) HWY_ATTR {
      ChunkHeads<decltype(element), decltype(heads)::value>(call, plan, kv_head, h, chunk, tokens);
    });
  });
}

// Adds up the chunks of one KV head, in their order, and writes its query heads' outputs.
void CombineChunks(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head) {
  const F32 d;
  const int64_t step = call.group * plan.padded_dim;
  const int64_t chunks = plan.first_chunk[kv_head + 1] - plan.first_chunk[kv_head];
  for (int64_t h = 0; h < call.group; ++h) {
    const int64_t row = plan.first_chunk[kv_head] * call.group + h;
    float* max = plan.partial_max + row;
    float* sum = plan.partial_sum + row;
    float highest = max[0];
    for (int64_t c = 1; c < chunks; ++c) highest = HWY_MAX(highest, max[c * call.group]);
    float total = 0.0f;
    for (int64_t c = 0; c < chunks; ++c) {
      float& weight = max[c * call.group];
      weight = hn::GetLane(Exp2(hn::Set(d, weight - highest)));
      total += weight * sum[c * call.group];
    }
    const VF scale = hn::Set(d, 1.0f / total);
    const float* values = plan.partial_values + row * plan.padded_dim;
    float* y = call.y + (kv_head * call.group + h) * call.head_dim;
    for (int64_t i = 0; i < call.head_dim; i += kLanes) {
      VF out = hn::Zero(d);
      for (int64_t c = 0; c < chunks; ++c) {
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
