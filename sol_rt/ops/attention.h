// Attention over the cache: one token by a team, or many tokens. docs/bundle.md section 3, SparseAttention, is its specification.
#pragma once

#include <cstddef>

#include "arena.h"
#include "attention_call.h"
#include "op.h"
#include "team.h"

namespace sol {

class Attention {
 public:
  // The tensors of a call besides q, k and v, as the operator has them among its inputs.
  struct Inputs {
    Tensor key, value, page_min, page_max, past_length, attn_keep, cos, sin;
  };

  // Reads the sizes from the attributes of the operator `op`.
  Attention(const Attributes& attributes, const char* op);

  int64_t QkvSize() const { return (sizes_.heads + 2 * sizes_.kv_heads) * sizes_.head_dim; }
  int64_t OutputSize() const { return sizes_.heads * sizes_.head_dim; }

  // Checks a call of `tokens` > 0 new tokens and makes the four outputs of the cache, from `first_output` on. The caller adds qkv and y.
  AttentionCall Begin(const Context& context, const Inputs& inputs, int64_t tokens, size_t first_output) const;

  // One token. A plan's arrays are shared by the team, but every member has queries of its own.
  DecodePlan PlanStep(const AttentionCall& call, Arena& arena) const;
  DecodePlan PlanOwn(const AttentionCall& call, const DecodePlan& plan, Arena& arena) const;
  // Before the team starts.
  void StartStep(const AttentionCall& call, const DecodePlan& plan) const;
  // How many members the step has work for.
  size_t StepMembers(const AttentionCall& call, const DecodePlan& plan) const;
  // Two phases of a team, one where all pages are read.
  void Step(Member& member, const AttentionCall& call, const DecodePlan& own) const;

  void Rows(const Context& context, const AttentionCall& call) const;

 private:
  const char* op_;
  AttentionCall sizes_{};
};

}  // namespace sol
