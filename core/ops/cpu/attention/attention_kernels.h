// The arithmetic of attention that is chosen by SIMD target. What each does: the attention_*-inl.h that defines it.
#pragma once

#include <cstdint>

#include "cpu/attention/attention_call.h"

namespace sol {

struct AttentionKernels {
  void (*append_page)(const AttentionCall& call, int64_t kv_head, int64_t page);

  void (*prepare_queries)(const AttentionCall& call, const DecodePlan& plan);
  void (*weigh_tokens)(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t block);
  void (*score_tokens)(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t block);
  void (*select_tokens)(const AttentionCall& call, const DecodePlan& plan);
  void (*decode_chunk)(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head, int64_t chunk);
  void (*combine_chunks)(const AttentionCall& call, const DecodePlan& plan, int64_t kv_head);

  int64_t (*prefill_positions)(const AttentionCall& call);
  int64_t (*prefill_scratch_floats)(const AttentionCall& call);
  int64_t (*prefill_state_floats)(const AttentionCall& call);
  void (*prefill_block)(const AttentionCall& call, int64_t kv_head, int64_t block, int64_t split, int64_t splits, float* scratch, float* state);
  void (*combine_splits)(const AttentionCall& call, int64_t kv_head, int64_t block, int64_t splits, float* states);
};

// The best set for this processor.
const AttentionKernels& BestAttentionKernels();

}  // namespace sol
