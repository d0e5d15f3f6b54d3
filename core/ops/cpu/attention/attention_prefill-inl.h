// Causal attention of S new tokens over T cached ones, y = softmax(softmax_scale q k) v for every query head, a query at position p seeing
// keys 0 … p, or the last `window` of these. One task is one KV head and a block of query positions, for all query heads of its group.
//
//   qkv [S, (H + 2 Hk) D]      float32; q is rotated here, k and v lie in the cache already
//   key, value [Hk, C, D]      float16 or int8 codes; a block of 64 is made to floats, once for all queries of the task
//   y [S, H D]                 float32
//
// Softmax goes along: each block of keys brings sums and values to its new maximum. Where there are few queries, the keys are split over
// tasks as well, and CombineSplits brings the splits to one maximum.
//
// Queries lie along the vector lanes: a row vector holds one head's queries at kLanes successive positions. Scores, softmax and sums are
// then vertical operations, and keys and values enter as broadcast scalars, so that no matrix is transposed but the queries.

#if defined(SOL_RT_OPS_ATTENTION_PREFILL_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_RT_OPS_ATTENTION_PREFILL_INL_H_
#undef SOL_RT_OPS_ATTENTION_PREFILL_INL_H_
#else
#define SOL_RT_OPS_ATTENTION_PREFILL_INL_H_
#endif

#include <limits>
#include <type_traits>

#include "cpu/attention/attention_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

// A register tile is kTileRows row vectors by kTileColumns keys (or channels of the values).
inline constexpr int kTileRows = 3;
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
inline constexpr int kTileColumns = 8;
#else
inline constexpr int kTileColumns = 4;
#endif
inline constexpr int64_t kTileWidth = kTileRows * kLanes;
inline constexpr int64_t kKeyBlock = 64;
// Queries a task aims for: enough to pay for the conversion of a key block, few enough for the second-level cache.
inline constexpr int64_t kTaskQueries = 192;
inline constexpr int64_t kMaxTiles = (kTaskQueries / kLanes + kMaxGroup) / kTileRows + 1;
// Below any score, yet finite: the difference of two is 0, not NaN.
inline constexpr float kLowestMaximum = -1e30f;

// Query positions of one task, a multiple of kLanes.
int64_t PrefillPositions(const AttentionCall& call) {
  return HWY_MIN(RoundUp(DivideUp(kTaskQueries, call.group), kLanes), RoundUp(call.tokens, kLanes));
}

struct PrefillTile {
  float* query;              // [D, kTileWidth], rotated, times softmax scale and log2(e)
  float* output;             // [D rounded up to kTileColumns, kTileWidth], not yet divided by sum
  float* max;                // [kTileWidth], in units of log2
  float* sum;                // [kTileWidth]
  int64_t first[kTileRows];  // position of a row vector's first query
  int64_t last;              // last position of any real query
};

int64_t PrefillTiles(const AttentionCall& call) { return DivideUp(PrefillPositions(call) / kLanes * call.group, kTileRows); }
int64_t Columns(const AttentionCall& call) { return RoundUp(call.head_dim, kTileColumns); }

// Floats of the output, maximum and sum of a task's tiles.
int64_t PrefillStateFloats(const AttentionCall& call) { return PrefillTiles(call) * (Columns(call) + 2) * kTileWidth; }

// Memory that a task needs besides its state, in floats aligned for vectors.
struct PrefillScratch {
  float* keys;     // [kKeyBlock, D]
  float* values;   // [kKeyBlock, columns]
  float* scores;   // [kKeyBlock, kTileWidth]
  float* queries;  // [tiles, D, kTileWidth]
  int64_t columns;

  PrefillScratch(const AttentionCall& call, float* base) : columns(Columns(call)) {
    keys = base;
    values = keys + kKeyBlock * RoundUp(call.head_dim, kMaxLanes);
    scores = values + kKeyBlock * RoundUp(columns, kMaxLanes);
    queries = scores + kKeyBlock * kTileWidth;
  }
};

int64_t PrefillScratchFloats(const AttentionCall& call) {
  return kKeyBlock * (RoundUp(call.head_dim, kMaxLanes) + RoundUp(Columns(call), kMaxLanes) + kTileWidth) +
         PrefillTiles(call) * call.head_dim * kTileWidth;
}

// A tile of the block of queries that starts at first_token, its state at the given place.
HWY_INLINE PrefillTile PlaceTile(const AttentionCall& call, int64_t first_token, int64_t index, float* queries, float* state) {
  PrefillTile tile;
  tile.query = queries + index * call.head_dim * kTileWidth;
  tile.output = state + index * (Columns(call) + 2) * kTileWidth;
  tile.max = tile.output + Columns(call) * kTileWidth;
  tile.sum = tile.max + kTileWidth;
  tile.last = -1;
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t token = first_token + (index * kTileRows + r) / call.group * kLanes;
    tile.first[r] = call.past + token;
    if (token < call.tokens) tile.last = call.past + HWY_MIN(token + kLanes, call.tokens) - 1;
  }
  return tile;
}

// Rotates a tile's queries, and empties its state. Lanes without a query are zero.
HWY_INLINE void StartTile(const AttentionCall& call, int64_t kv_head, int64_t index, const PrefillTile& tile) {
  HWY_ALIGN float rotated[kMaxHeadDim];
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t head = kv_head * call.group + (index * kTileRows + r) % call.group;
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float* to = tile.query + r * kLanes + lane;
      const int64_t position = tile.first[r] + lane;
      if (position < call.total) {
        RotateRow(call, call.QueryRow(position - call.past, head), position, call.scale * kLog2E, rotated);
        for (int64_t i = 0; i < call.head_dim; ++i) to[i * kTileWidth] = rotated[i];
      } else {
        for (int64_t i = 0; i < call.head_dim; ++i) to[i * kTileWidth] = 0.0f;
      }
    }
  }
  for (int64_t i = 0; i < Columns(call) * kTileWidth; ++i) tile.output[i] = 0.0f;
  for (int64_t i = 0; i < kTileWidth; ++i) {
    tile.max[i] = kLowestMaximum;
    tile.sum[i] = 0.0f;
  }
}

// Keys and values of a block as floats; rows after the last token are zero.
template <class Element>
HWY_INLINE void LoadBlock(const AttentionCall& call, const PrefillScratch& scratch, int64_t kv_head, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t dim = call.head_dim;
  for (int64_t k = 0; k < end - begin; ++k) {
    const Element* key = call.KeyRow<Element>(kv_head, begin + k);
    const Element* value = call.ValueRow<Element>(kv_head, begin + k);
    VF key_scale = hn::Undefined(d), value_scale = hn::Undefined(d);
    if constexpr (std::is_same_v<Element, int8_t>) {
      key_scale = hn::Set(d, hwy::F32FromF16(call.key_scale[call.ScaleOffset(kv_head, begin + k)]));
      value_scale = hn::Set(d, hwy::F32FromF16(call.value_scale[call.ScaleOffset(kv_head, begin + k)]));
    }
    const auto scaled = [](VF numbers, VF scale) HWY_ATTR {
      if constexpr (std::is_same_v<Element, int8_t>) return hn::Mul(numbers, scale);
      return numbers;
    };
    float* key_to = scratch.keys + k * dim;
    float* value_to = scratch.values + k * scratch.columns;
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
      hn::StoreU(scaled(LoadFloats(key + i), key_scale), d, key_to + i);
      hn::StoreU(scaled(LoadFloats(value + i), value_scale), d, value_to + i);
    }
    if (const int64_t n = dim - i; n > 0) {
      hn::StoreN(scaled(LoadFloats(key + i, n), key_scale), d, key_to + i, static_cast<size_t>(n));
      hn::StoreN(scaled(LoadFloats(value + i, n), value_scale), d, value_to + i, static_cast<size_t>(n));
    }
    for (i = dim; i < scratch.columns; ++i) value_to[i] = 0.0f;
  }
  for (int64_t k = end - begin; k < RoundUp(end - begin, kTileColumns); ++k) {
    for (int64_t i = 0; i < dim; ++i) scratch.keys[k * dim + i] = 0.0f;
    for (int64_t i = 0; i < scratch.columns; ++i) scratch.values[k * scratch.columns + i] = 0.0f;
  }
}

// scores[k][row] = query of row times key k, for kTileColumns keys.
HWY_INLINE void TileScores(const float* query, const float* keys, int64_t dim, float* scores) {
  const F32 d;
  VF sum[kTileColumns][kTileRows];
  for (int k = 0; k < kTileColumns; ++k) {
    for (int r = 0; r < kTileRows; ++r) sum[k][r] = hn::Zero(d);
  }
  for (int64_t i = 0; i < dim; ++i) {
    VF q[kTileRows];
    for (int r = 0; r < kTileRows; ++r) q[r] = hn::Load(d, query + i * kTileWidth + r * kLanes);
    for (int k = 0; k < kTileColumns; ++k) {
      const VF key = hn::Set(d, keys[k * dim + i]);
      for (int r = 0; r < kTileRows; ++r) sum[k][r] = hn::MulAdd(key, q[r], sum[k][r]);
    }
  }
  for (int k = 0; k < kTileColumns; ++k) {
    for (int r = 0; r < kTileRows; ++r) hn::Store(sum[k][r], d, scores + k * kTileWidth + r * kLanes);
  }
}

// Scores of keys after a query's position become -infinity. `key` is the position of scores[0], of kTileColumns keys.
HWY_INLINE void MaskScores(const PrefillTile& tile, int64_t key, float* scores) {
  const F32 d;
  const I32 di;
  const VF lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int r = 0; r < kTileRows; ++r) {
    const auto lane = hn::Iota(di, 0);
    for (int k = 0; k < kTileColumns; ++k) {
      const int64_t first_lane = HWY_MIN(key + k - tile.first[r], kLanes);
      if (first_lane <= 0) continue;
      float* at = scores + k * kTileWidth + r * kLanes;
      const auto seen = hn::RebindMask(d, hn::Ge(lane, hn::Set(di, static_cast<int32_t>(first_lane))));
      hn::Store(hn::IfThenElse(seen, hn::Load(d, at), lowest), d, at);
    }
  }
}

// Scores of keys before a query's window become -infinity. `key` is the position of scores[0], of kTileColumns keys.
HWY_INLINE void MaskBeforeWindow(const PrefillTile& tile, int64_t key, int64_t window, float* scores) {
  const F32 d;
  const I32 di;
  const VF lowest = hn::Set(d, -std::numeric_limits<float>::infinity());
  for (int r = 0; r < kTileRows; ++r) {
    const auto lane = hn::Iota(di, 0);
    for (int k = 0; k < kTileColumns; ++k) {
      const int64_t last_lane = HWY_MAX(key + k + window - 1 - tile.first[r], int64_t{-1});
      if (last_lane >= kLanes - 1) continue;
      float* at = scores + k * kTileWidth + r * kLanes;
      const auto seen = hn::RebindMask(d, hn::Le(lane, hn::Set(di, static_cast<int32_t>(last_lane))));
      hn::Store(hn::IfThenElse(seen, hn::Load(d, at), lowest), d, at);
    }
  }
}

// Scores of kTileColumns keys under the soft cap.
HWY_INLINE void CapScores(float cap, float* scores) {
  for (int64_t i = 0; i < kTileColumns * kTileWidth; i += kLanes) hn::Store(SoftCap(hn::Load(F32(), scores + i), cap), F32(), scores + i);
}

// output[channel][row] = output * factor[row] + sum over keys of value[key][channel] * weight[key][row], for kTileColumns channels.
HWY_INLINE void TileValues(const float* weights, const float* values, int64_t columns, int64_t keys, const VF (&factor)[kTileRows],
                           float* output) {
  const F32 d;
  VF sum[kTileColumns][kTileRows];
  for (int c = 0; c < kTileColumns; ++c) {
    for (int r = 0; r < kTileRows; ++r) sum[c][r] = hn::Mul(factor[r], hn::Load(d, output + c * kTileWidth + r * kLanes));
  }
  for (int64_t k = 0; k < keys; ++k) {
    VF weight[kTileRows];
    for (int r = 0; r < kTileRows; ++r) weight[r] = hn::Load(d, weights + k * kTileWidth + r * kLanes);
    for (int c = 0; c < kTileColumns; ++c) {
      const VF value = hn::Set(d, values[k * columns + c]);
      for (int r = 0; r < kTileRows; ++r) sum[c][r] = hn::MulAdd(value, weight[r], sum[c][r]);
    }
  }
  for (int c = 0; c < kTileColumns; ++c) {
    for (int r = 0; r < kTileRows; ++r) hn::Store(sum[c][r], d, output + c * kTileWidth + r * kLanes);
  }
}

// One tile against the key block [begin, end).
HWY_INLINE void AttendBlock(const AttentionCall& call, const PrefillScratch& scratch, const PrefillTile& tile, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t keys = RoundUp(HWY_MIN(end, tile.last + 1) - begin, kTileColumns);
  int64_t first = tile.first[0];
  for (int r = 1; r < kTileRows; ++r) first = HWY_MIN(first, tile.first[r]);
  for (int64_t k = 0; k < keys; k += kTileColumns) {
    float* scores = scratch.scores + k * kTileWidth;
    TileScores(tile.query, scratch.keys + k * call.head_dim, call.head_dim, scores);
    if (call.softcap > 0.0f) CapScores(call.softcap * kLog2E, scores);
    if (begin + k + kTileColumns - 1 > first) MaskScores(tile, begin + k, scores);
    if (call.window > 0 && begin + k <= tile.last - call.window) MaskBeforeWindow(tile, begin + k, call.window, scores);
  }
  VF factor[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    const float* column = scratch.scores + r * kLanes;
    const VF old_max = hn::Load(d, tile.max + r * kLanes);
    VF max = old_max;
    for (int64_t k = 0; k < keys; ++k) max = hn::Max(max, hn::Load(d, column + k * kTileWidth));
    factor[r] = Exp2(hn::Sub(old_max, max));
    VF sum = hn::Mul(factor[r], hn::Load(d, tile.sum + r * kLanes));
    for (int64_t k = 0; k < keys; ++k) {
      const VF weight = Exp2(hn::Sub(hn::Load(d, column + k * kTileWidth), max));
      hn::Store(weight, d, scratch.scores + r * kLanes + k * kTileWidth);
      sum = hn::Add(sum, weight);
    }
    hn::Store(max, d, tile.max + r * kLanes);
    hn::Store(sum, d, tile.sum + r * kLanes);
  }
  for (int64_t c = 0; c < scratch.columns; c += kTileColumns) {
    TileValues(scratch.scores, scratch.values + c, scratch.columns, keys, factor, tile.output + c * kTileWidth);
  }
}

// Divides by the sums and writes the rows of y that are real queries.
HWY_INLINE void FinishTile(const AttentionCall& call, int64_t kv_head, int64_t index, int64_t row_vectors, const PrefillTile& tile) {
  for (int r = 0; r < kTileRows && index * kTileRows + r < row_vectors; ++r) {
    const int64_t head = kv_head * call.group + (index * kTileRows + r) % call.group;
    for (int64_t lane = 0; lane < HWY_MIN(kLanes, call.total - tile.first[r]); ++lane) {
      const float* from = tile.output + r * kLanes + lane;
      const float scale = 1.0f / tile.sum[r * kLanes + lane];
      float* y = call.y + ((tile.first[r] + lane - call.past) * call.heads + head) * call.head_dim;
      for (int64_t c = 0; c < call.head_dim; ++c) y[c] = from[c * kTileWidth] * scale;
    }
  }
}

// Attention of one KV head's group for one block of queries, over one of `splits` shares of the keys. `scratch` has PrefillScratchFloats
// floats, `state` PrefillStateFloats, both aligned for vectors. A single share also writes y.
void PrefillBlock(const AttentionCall& call, int64_t kv_head, int64_t block, int64_t split, int64_t splits, float* scratch_base, float* state) {
  const PrefillScratch scratch(call, scratch_base);
  const int64_t first_token = block * PrefillPositions(call);
  const int64_t end_token = HWY_MIN(first_token + PrefillPositions(call), call.tokens);
  const int64_t row_vectors = DivideUp(end_token - first_token, kLanes) * call.group;
  const int64_t tiles = DivideUp(row_vectors, kTileRows);
  PrefillTile tile[kMaxTiles];
  for (int64_t i = 0; i < tiles; ++i) {
    tile[i] = PlaceTile(call, first_token, i, scratch.queries, state);
    StartTile(call, kv_head, i, tile[i]);
  }
  const int64_t end_key = call.past + end_token;
  const int64_t first_key = call.window > 0 ? HWY_MAX(call.past + first_token + 1 - call.window, int64_t{0}) : 0;
  const int64_t first_block = first_key / kKeyBlock, key_blocks = DivideUp(end_key, kKeyBlock) - first_block;
  for (int64_t b = first_block + key_blocks * split / splits; b < first_block + key_blocks * (split + 1) / splits; ++b) {
    const int64_t begin = b * kKeyBlock;
    const int64_t end = HWY_MIN(begin + kKeyBlock, end_key);
    WithElement(call, [&](auto element) HWY_ATTR { LoadBlock<decltype(element)>(call, scratch, kv_head, begin, end); });
    for (int64_t i = 0; i < tiles; ++i) {
      if (begin <= tile[i].last) AttendBlock(call, scratch, tile[i], begin, end);
    }
  }
  if (splits > 1) return;
  for (int64_t i = 0; i < tiles; ++i) FinishTile(call, kv_head, i, row_vectors, tile[i]);
}

// Adds up the states of a block's shares, which lie one after the other, and writes y.
void CombineSplits(const AttentionCall& call, int64_t kv_head, int64_t block, int64_t splits, float* states) {
  const F32 d;
  const int64_t first_token = block * PrefillPositions(call);
  const int64_t end_token = HWY_MIN(first_token + PrefillPositions(call), call.tokens);
  const int64_t row_vectors = DivideUp(end_token - first_token, kLanes) * call.group;
  for (int64_t i = 0; i < DivideUp(row_vectors, kTileRows); ++i) {
    const PrefillTile sum = PlaceTile(call, first_token, i, nullptr, states);
    for (int64_t split = 1; split < splits; ++split) {
      const PrefillTile other = PlaceTile(call, first_token, i, nullptr, states + split * PrefillStateFloats(call));
      for (int64_t r = 0; r < kTileWidth; r += kLanes) {
        const VF max = hn::Max(hn::Load(d, sum.max + r), hn::Load(d, other.max + r));
        const VF keep = Exp2(hn::Sub(hn::Load(d, sum.max + r), max));
        const VF take = Exp2(hn::Sub(hn::Load(d, other.max + r), max));
        hn::Store(max, d, sum.max + r);
        const auto merge = [&](float* to, const float* from) HWY_ATTR {
          hn::Store(hn::MulAdd(keep, hn::Load(d, to), hn::Mul(take, hn::Load(d, from))), d, to);
        };
        merge(sum.sum + r, other.sum + r);
        for (int64_t c = 0; c < Columns(call); ++c) merge(sum.output + c * kTileWidth + r, other.output + c * kTileWidth + r);
      }
    }
    FinishTile(call, kv_head, i, row_vectors, sum);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_PREFILL_INL_H_
