// Causal attention of many new tokens: one task is one KV head and a block of query positions, for all query heads of the group.
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

#include "attention_math-inl.h"

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

// One tile's slices of a task's memory.
struct PrefillTile {
  float* query;     // [D, kTileWidth], rotated, times softmax scale and log2(e)
  float* output;    // [D rounded up to kTileColumns, kTileWidth]
  float* max;       // [kTileWidth]
  float* sum;       // [kTileWidth]
  int64_t first[kTileRows];  // position of a row vector's first query
  int64_t last;     // last position of any real query
};

struct PrefillMemory {
  int64_t tiles;
  int64_t columns;  // D rounded up to kTileColumns
  float* keys;      // [kKeyBlock, D]
  float* values;    // [kKeyBlock, columns]
  float* scores;    // [kKeyBlock, kTileWidth]
  float* tile0;     // tiles, each query, output, max, sum

  PrefillMemory(const AttentionCall& call, float* base)
      : tiles(DivideUp(PrefillPositions(call) / kLanes * call.group, kTileRows)), columns(RoundUp(call.head_dim, kTileColumns)) {
    keys = base;
    values = keys + kKeyBlock * RoundUp(call.head_dim, kMaxLanes);
    scores = values + kKeyBlock * RoundUp(columns, kMaxLanes);
    tile0 = scores + kKeyBlock * kTileWidth;
  }
  int64_t TileFloats(const AttentionCall& call) const { return (call.head_dim + columns + 2) * kTileWidth; }
  int64_t Floats(const AttentionCall& call) const { return (tile0 - keys) + tiles * TileFloats(call); }
};

int64_t PrefillFloats(const AttentionCall& call) {
  // Offsets do not depend on the base.
  alignas(64) static float origin[1];
  return PrefillMemory(call, origin).Floats(call);
}

HWY_INLINE void LoadQueries(const AttentionCall& call, int64_t kv_head, int64_t first_token, int64_t tile_index, PrefillTile& tile) {
  const F32 d;
  HWY_ALIGN float rotated[kMaxHeadDim];
  tile.last = -1;
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t row_vector = tile_index * kTileRows + r;
    const int64_t token0 = first_token + row_vector / call.group * kLanes;
    tile.first[r] = call.past + token0;
    const int64_t count = HWY_MAX(int64_t{0}, HWY_MIN(kLanes, call.tokens - token0));
    if (count > 0) tile.last = HWY_MAX(tile.last, call.past + token0 + count - 1);
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      float* to = tile.query + r * kLanes + lane;
      if (lane < count) {
        const int64_t head = kv_head * call.group + row_vector % call.group;
        RotateRow(call, call.QueryRow(token0 + lane, head), call.past + token0 + lane, call.scale * kLog2E, rotated);
        for (int64_t i = 0; i < call.head_dim; ++i) to[i * kTileWidth] = rotated[i];
      } else {
        for (int64_t i = 0; i < call.head_dim; ++i) to[i * kTileWidth] = 0.0f;
      }
    }
    hn::StoreU(hn::Set(d, kLowestMaximum), d, tile.max + r * kLanes);
    hn::StoreU(hn::Zero(d), d, tile.sum + r * kLanes);
  }
}

// Keys and values of a block as floats; rows behind the last token are zero.
HWY_INLINE void LoadBlock(const AttentionCall& call, const PrefillMemory& memory, int64_t kv_head, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t dim = call.head_dim;
  for (int64_t k = 0; k < end - begin; ++k) {
    const hwy::float16_t* key = call.KeyRow(kv_head, begin + k);
    const hwy::float16_t* value = call.ValueRow(kv_head, begin + k);
    float* key_to = memory.keys + k * dim;
    float* value_to = memory.values + k * memory.columns;
    int64_t i = 0;
    for (; i + kLanes <= dim; i += kLanes) {
      hn::StoreU(LoadHalf(key + i), d, key_to + i);
      hn::StoreU(LoadHalf(value + i), d, value_to + i);
    }
    if (const int64_t n = dim - i; n > 0) {
      hn::StoreN(LoadHalf(key + i, n), d, key_to + i, static_cast<size_t>(n));
      hn::StoreN(LoadHalf(value + i, n), d, value_to + i, static_cast<size_t>(n));
    }
    for (i = dim; i < memory.columns; ++i) value_to[i] = 0.0f;
  }
  for (int64_t k = end - begin; k < RoundUp(end - begin, kTileColumns); ++k) {
    for (int64_t i = 0; i < dim; ++i) memory.keys[k * dim + i] = 0.0f;
    for (int64_t i = 0; i < memory.columns; ++i) memory.values[k * memory.columns + i] = 0.0f;
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

// Scores of keys behind a query's position become -infinity. `key` is the position of scores[0], of kTileColumns keys.
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
HWY_INLINE void AttendBlock(const AttentionCall& call, const PrefillMemory& memory, const PrefillTile& tile, int64_t begin, int64_t end) {
  const F32 d;
  const int64_t keys = RoundUp(HWY_MIN(end, tile.last + 1) - begin, kTileColumns);
  int64_t first = tile.first[0];
  for (int r = 1; r < kTileRows; ++r) first = HWY_MIN(first, tile.first[r]);
  for (int64_t k = 0; k < keys; k += kTileColumns) {
    float* scores = memory.scores + k * kTileWidth;
    TileScores(tile.query, memory.keys + k * call.head_dim, call.head_dim, scores);
    if (begin + k + kTileColumns - 1 > first) MaskScores(tile, begin + k, scores);
  }
  VF factor[kTileRows];
  for (int r = 0; r < kTileRows; ++r) {
    const float* column = memory.scores + r * kLanes;
    const VF old_max = hn::Load(d, tile.max + r * kLanes);
    VF max = old_max;
    for (int64_t k = 0; k < keys; ++k) max = hn::Max(max, hn::Load(d, column + k * kTileWidth));
    factor[r] = Exp2(hn::Sub(old_max, max));
    VF sum = hn::Mul(factor[r], hn::Load(d, tile.sum + r * kLanes));
    for (int64_t k = 0; k < keys; ++k) {
      const VF weight = Exp2(hn::Sub(hn::Load(d, column + k * kTileWidth), max));
      hn::Store(weight, d, memory.scores + r * kLanes + k * kTileWidth);
      sum = hn::Add(sum, weight);
    }
    hn::Store(max, d, tile.max + r * kLanes);
    hn::Store(sum, d, tile.sum + r * kLanes);
  }
  for (int64_t c = 0; c < memory.columns; c += kTileColumns) {
    TileValues(memory.scores, memory.values + c, memory.columns, keys, factor, tile.output + c * kTileWidth);
  }
}

// Attention of one KV head's group for the query positions of one block; `base` has PrefillFloats floats, aligned to 64 bytes.
void PrefillBlock(const AttentionCall& call, int64_t kv_head, int64_t block, float* base) {
  const PrefillMemory memory(call, base);
  const int64_t positions = PrefillPositions(call);
  const int64_t first_token = block * positions;
  const int64_t row_vectors = DivideUp(HWY_MIN(positions, call.tokens - first_token), kLanes) * call.group;
  const int64_t tiles = DivideUp(row_vectors, kTileRows);
  const auto tile_at = [&](int64_t index) HWY_ATTR {
    PrefillTile tile;
    tile.query = memory.tile0 + index * memory.TileFloats(call);
    tile.output = tile.query + call.head_dim * kTileWidth;
    tile.max = tile.output + memory.columns * kTileWidth;
    tile.sum = tile.max + kTileWidth;
    return tile;
  };
  PrefillTile tiles_of_task[kMaxTiles];
  for (int64_t i = 0; i < tiles; ++i) {
    tiles_of_task[i] = tile_at(i);
    LoadQueries(call, kv_head, first_token, i, tiles_of_task[i]);
    for (int64_t at = 0; at < memory.columns * kTileWidth; ++at) tiles_of_task[i].output[at] = 0.0f;
  }
  const int64_t last = call.past + HWY_MIN(first_token + positions, call.tokens) - 1;
  for (int64_t begin = 0; begin <= last; begin += kKeyBlock) {
    const int64_t end = HWY_MIN(begin + kKeyBlock, last + 1);
    LoadBlock(call, memory, kv_head, begin, end);
    for (int64_t i = 0; i < tiles; ++i) {
      if (begin <= tiles_of_task[i].last) AttendBlock(call, memory, tiles_of_task[i], begin, end);
    }
  }
  for (int64_t i = 0; i < tiles; ++i) {
    const PrefillTile& tile = tiles_of_task[i];
    for (int r = 0; r < kTileRows; ++r) {
      const int64_t row_vector = i * kTileRows + r;
      const int64_t token0 = tile.first[r] - call.past;
      const int64_t head = kv_head * call.group + row_vector % call.group;
      if (row_vector >= row_vectors) break;
      for (int64_t lane = 0; lane < HWY_MIN(kLanes, call.tokens - token0); ++lane) {
        const float* from = tile.output + r * kLanes + lane;
        const float scale = 1.0f / tile.sum[r * kLanes + lane];
        float* y = call.y + ((token0 + lane) * call.heads + head) * call.head_dim;
        for (int64_t c = 0; c < call.head_dim; ++c) y[c] = from[c * kTileWidth] * scale;
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_RT_OPS_ATTENTION_PREFILL_INL_H_
