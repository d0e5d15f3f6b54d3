// The launches of attention, and how they cut the context.
#pragma once

#include "cuda/attention/attention.h"

namespace sol::cuda {

constexpr float kLog2E = 1.44269504088896341f;
constexpr int kBlockTokens = 256;   // old tokens that a block scores, one a thread
constexpr int kChunkTokens = 128;  // of the cache that a block attends
constexpr int kMostDecodeTokens = 16;  // new tokens that are attended chunk by chunk; more of them fill the device by themselves

inline int TokenBlocksOf(const AttentionCall& call) { return (call.capacity + kBlockTokens - 1) / kBlockTokens; }
inline int ChunksOf(const AttentionCall& call) { return (call.capacity + kChunkTokens - 1) / kChunkTokens; }
// A KV head's rows: all queries that read it. A block attends RowsAtOnce of them.
inline int RowsOf(const AttentionCall& call) { return call.tokens * call.group; }
inline int RowsAtOnce(const AttentionCall& call) { return RowsOf(call) <= 4 ? 4 : 8; }
inline int PassesOf(const AttentionCall& call) { return (RowsOf(call) + RowsAtOnce(call) - 1) / RowsAtOnce(call); }

// Appends the step's token and weighs old tokens, then scores and selects them.
void SelectTokens(Stream stream, const AttentionCall& call, const AttentionScratch& scratch);
// Few queries.
void AttendChunks(Stream stream, const AttentionCall& call, const AttentionScratch& scratch);
// Many tokens.
void AppendTokens(Stream stream, const AttentionCall& call, const AttentionScratch& scratch);
void AttendPrompt(Stream stream, const AttentionCall& call);

}  // namespace sol::cuda
