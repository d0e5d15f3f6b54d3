// A run that several sessions share: each of its tokens is the next one of another session, which keeps a cache of its own. The core says so before the
// run, in the thread that calls ONNX Runtime; operators that attend then look here for each token's cache and place in place of their inputs.
#pragma once

#include <cstddef>
#include <cstdint>

// Sessions that one run may have: so many tokens of a call have the bits that each has alone (cpu/few_tokens.h).
constexpr size_t kMostSessionRows = 16;

struct SolSessionRow {
  int64_t past;        // tokens in its cache
  int64_t kv_pages;    // old pages to read where the input kv_pages is 0; elsewhere the input holds
  int64_t capacity;    // of its cache, tokens
  void* const* cache;  // buffers of its cache
};

struct SolSessionRows {
  const SolSessionRow* rows;  // those of the first one are bound to the graph; its buffers' addresses ascend
  size_t count;               // 2 to kMostSessionRows
  size_t buffers;             // of each cache
};

// Of the runs of this thread that follow; null: of one session each.
extern "C" void SolOpsShareRuns(const SolSessionRows* rows);
