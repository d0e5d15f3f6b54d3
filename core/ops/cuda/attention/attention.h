// Attention over the cache on the device. docs/reference/bundle-details.md section 3, SparseAttention, is its specification. No CUDA header is needed to
// call this.
#pragma once

#include <cstddef>
#include <cstdint>

#include "common/attention_limits.h"
#include "cuda/device/scratch.h"

namespace sol::cuda {

using Stream = void*;

constexpr int kPageSize = sol::kPageSize;
constexpr int kMaxHeadDim = sol::kMaxHeadDim;
constexpr int kMaxGroup = sol::kMaxGroup;

// One call. What varies between steps of one captured graph, the count of tokens in the cache and of those to read, is read on the device.
struct AttentionCall {
  int heads = 0;       // H, query heads
  int kv_heads = 0;    // Hk
  int group = 0;       // H / Hk, query heads that read one KV head
  int head_dim = 0;    // D, even
  int rotary_dim = 0;  // even, at most D
  int sinks = 0;       // first tokens that are always attended
  int window = 0;      // tokens that a token attends to, itself included; 0: all
  float scale = 0;     // of the softmax
  float softcap = 0;   // of the products of q and k, after the scale; 0: none
  bool int8 = false;   // whether keys and values are codes of 8 bits, else float16
  int capacity = 0;    // C, tokens, a multiple of kPageSize
  int tokens = 0;      // S
  int table_rows = 0;  // of cos and sin

  const int64_t* past_length = nullptr;
  const int64_t* kv_pages = nullptr;
  const float* qkv = nullptr;  // [S, (H + 2 Hk) D]
  const float* cos = nullptr;  // [table_rows, rotary_dim / 2]
  const float* sin = nullptr;
  void* key = nullptr;         // [Hk, C, D]
  void* value = nullptr;
  uint16_t* key_scale = nullptr;  // float16 [Hk, C], of an int8 cache
  uint16_t* value_scale = nullptr;
  uint8_t* key_codes = nullptr;   // [Hk, C, D / 2], interleaved within a page
  uint16_t* key_range = nullptr;  // float16 [Hk, C, 2], of a page its tokens' minima, then their steps
  float* y = nullptr;             // [S, H D]
};

// End of a step's selection: an old token is kept if its score is above `threshold`, or equals it and it stands no later than `last`, counted over KV
// heads and their old tokens.
struct Selection {
  uint32_t threshold;
  int64_t last;
};

// Memory between the launches of a call.
struct AttentionScratch {
  float* weights = nullptr;       // [H, C], of old tokens over the maximum of their block of tokens
  float* block_max = nullptr;      // [H, token blocks], in units of log2
  float* block_sum = nullptr;      // [H, token blocks]
  uint32_t* scores = nullptr;     // [Hk, C], the bits of floats >= 0
  uint32_t* bins = nullptr;       // how many scores begin with the same 11 bits
  uint32_t* candidates = nullptr; // [Hk C], scores that begin as the lowest one kept
  uint32_t* places = nullptr;     // [Hk C], of the candidates
  Selection* selection = nullptr;
  float* partial_max = nullptr;   // [Hk, chunks, rows], in units of log2
  float* partial_sum = nullptr;
  float* partial_values = nullptr;  // [Hk, chunks, rows, D]
  uint32_t* counters = nullptr;     // of the selection, then of every KV head's passes over its rows
};

AttentionScratch PlaceAttention(const AttentionCall& call, Scratch& scratch);

// Rotates, appends, codes the keys of the pages that got a token, selects, attends. A past_length beyond the capacity or the tables, or
// a negative count, gives what is not a number, and leaves the cache as it is.
void Attend(Stream stream, const AttentionCall& call, const AttentionScratch& scratch);

void CopyBytes(Stream stream, void* to, const void* from, size_t bytes);

}  // namespace sol::cuda
