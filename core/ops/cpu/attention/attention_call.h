// Data of one call of SparseAttention: sizes, pointers and the plan of its tasks. Plain data, the same for every SIMD target.
#pragma once

#include <hwy/base.h>

#include <atomic>
#include <cstdint>

#include "common/attention_limits.h"
#include "common/session_rows.h"
#include "cpu/simd/prefetch.h"

namespace sol {

// Rows of queries are padded to this many floats, the widest vector of any target.
inline constexpr int64_t kMaxLanes = 16;
// Upper limit of a decode task. Its scores for 4 heads stay in the first-level cache.
inline constexpr int64_t kMaxChunkTokens = 256;
// Old tokens that one task scores, a multiple of kMaxLanes. Their weights for 4 heads stay in the first-level cache.
inline constexpr int64_t kBlockTokens = 1024;
inline constexpr float kLog2E = 1.44269504088896341f;

inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t RoundUp(int64_t a, int64_t b) { return DivideUp(a, b) * b; }

// Keys and values come from memory: between two steps the weights of the whole model pass through the caches. The hardware foresees neither
// the first lines of a stream nor where the next chosen token lies.
inline void PrefetchBytes(const void* from, int64_t bytes) { PrefetchLines(from, static_cast<size_t>(bytes)); }

struct AttentionCall {
  int64_t heads;       // H, query heads
  int64_t kv_heads;    // Hk
  int64_t group;       // H / Hk, query heads that read one KV head
  int64_t head_dim;    // D
  int64_t rotary_dim;  // even, at most D
  int64_t sinks;       // first tokens that are always attended
  int64_t window;      // tokens that a token attends to, itself included; 0: all
  float scale;         // of the softmax
  float softcap;       // of the products of q and k, after the scale; 0: none

  // With a window, positions count from the page in which the first new token's window begins: what follows is of that part of the cache.
  int64_t base;      // where it begins, a multiple of kPageSize
  int64_t skip;      // its first tokens that one new token does not attend to, below kPageSize
  int64_t capacity;  // C, tokens of the whole cache, a multiple of kPageSize
  int64_t past;      // tokens before this call
  int64_t tokens;    // S
  int64_t total;     // T = past + S
  int64_t pages;     // P = ceil(T / kPageSize)
  int64_t kv_pages;      // old pages to read; where there are more, as many tokens instead, chosen one by one

  const SolSessionRows* sessions;  // each token's own cache and place, which then are not yet in this call; null: all are of one session

  const float* qkv;             // [S, (H + 2 Hk) D]
  const float* cos;             // [>= T, rotary_dim / 2]
  const float* sin;             // as cos
  bool int8;                    // whether keys and values are codes of 8 bits, else float16
  void* key;                    // [Hk, C, D]
  void* value;                  // [Hk, C, D]
  hwy::float16_t* key_scale;    // [Hk, C], what a token's codes are multiplied by; null for float16
  hwy::float16_t* value_scale;  // as key_scale
  uint8_t* key_codes;           // [Hk, C, D / 2], 4 bits a number, interleaved within a page: docs/reference/bundle-details.md section 3
  hwy::float16_t* key_range;    // [Hk, C, 2], of a page its tokens' minima, then their steps
  float* y;                     // [S, H D]

  // Of a new token, counted from the first token of the text.
  int64_t Position(int64_t token) const { return sessions == nullptr ? base + past + token : sessions->rows[token].past; }
  const float* QueryRow(int64_t token, int64_t head) const {
    return qkv + (token * (heads + 2 * kv_heads) + head) * head_dim;
  }
  const float* KeySource(int64_t token, int64_t kv_head) const { return QueryRow(token, heads + kv_head); }
  const float* ValueSource(int64_t token, int64_t kv_head) const { return QueryRow(token, heads + kv_heads + kv_head); }
  // Element is that of the cache: int8_t or hwy::float16_t.
  template <class Element>
  Element* KeyRow(int64_t kv_head, int64_t position) const {
    return static_cast<Element*>(key) + ScaleOffset(kv_head, position) * head_dim;
  }
  template <class Element>
  Element* ValueRow(int64_t kv_head, int64_t position) const {
    return static_cast<Element*>(value) + ScaleOffset(kv_head, position) * head_dim;
  }
  int64_t ScaleOffset(int64_t kv_head, int64_t position) const { return kv_head * capacity + position; }
  int64_t RowBytes() const { return int8 ? head_dim : head_dim * static_cast<int64_t>(sizeof(hwy::float16_t)); }
  // Of one token.
  int64_t CodeBytes() const { return head_dim / 2; }
  // Bytes of one nibble of a head's query codes. Where a token's bytes are no whole quads, a vector is read that begins with the last ones.
  int64_t CodeStride() const {
    return RoundUp(kPageSize * RoundUp(CodeBytes(), 4), 4 * kMaxLanes) + (CodeBytes() % 4 != 0 ? 4 * kMaxLanes : 0);
  }
  uint8_t* PageCodes(int64_t kv_head, int64_t page) const { return key_codes + (kv_head * capacity + page * kPageSize) * CodeBytes(); }
  hwy::float16_t* PageRange(int64_t kv_head, int64_t page) const { return key_range + (kv_head * capacity + page * kPageSize) * 2; }
};

// One decode step (S = 1). Every KV head's attended tokens form a list, cut into chunks; a chunk is one task, whose partial result
// (maximum, sum, weighted values) the last task of the head combines. Old tokens are scored in blocks. All cuts depend on sizes and
// scores only, so that results are the same for any number of threads.
struct DecodePlan {
  bool sparse;
  bool appended;         // whether the new token is in the cache before its chunks are attended
  int64_t padded_dim;    // D rounded up to kMaxLanes
  int64_t code_stride;   // bytes of a head's query codes of one nibble
  int64_t old_tokens;    // of a KV head, those before the newest page
  int64_t most_tokens;   // upper limit of all lists together
  int64_t chunk_tokens;  // a multiple of kMaxLanes, at most kMaxChunkTokens
  int64_t most_chunks;   // upper limit, of all KV heads
  int64_t token_blocks;  // that the old tokens of a KV head are scored in
  int64_t score_stride;  // old_tokens rounded up to kMaxLanes
  int64_t list_stride;

  float* query;                   // [H, padded_dim], rotated, times softmax scale and log2(e)
  int8_t* query_low;              // [H, code_stride], codes of q's even channels, those of 4 in turn for each token of a page
  int8_t* query_high;             // as query_low, odd channels
  float* query_step;              // [H], what the codes are multiplied by, times softmax scale and log2(e)
  float* query_sum;               // [H], sum of the codes
  float* token_weights;           // [H, score_stride], 2^(score - the block's maximum), scores in units of log2
  float* block_max;               // [H, token_blocks], in units of log2
  float* block_sum;               // [H, token_blocks], of token_weights
  int32_t* token_scores;          // [Hk, score_stride], the bits of floats >= 0; -1 after the last old token
  int32_t* candidates;            // [Hk * score_stride + kMaxLanes], scores near the lowest one kept
  int32_t* tokens;                // [Hk, list_stride], positions to read, ascending
  int32_t* listed;                // [Hk], length of the list
  int32_t* first_chunk;           // [Hk + 1], of each KV head; the last is the number of chunks
  float* partial_max;             // [chunks, group], in units of log2
  float* partial_sum;             // [chunks, group]
  float* partial_values;          // [chunks, group, padded_dim]
  std::atomic<int32_t>* pending_blocks;  // token blocks of all KV heads whose token_scores are not yet made
  std::atomic<int32_t>* pending_chunks;  // [Hk], chunks of the head not yet done
};

}  // namespace sol
