// Attention over the cache: one token by a team, or many tokens. docs/reference/bundle-details.md section 3, SparseAttention, is its specification.
#pragma once

#include <cstddef>

#include "common/inputs/attention_inputs.h"
#include "common/onnx/node.h"
#include "cpu/attention/attention_call.h"
#include "cpu/threads/arena.h"
#include "cpu/threads/team.h"

namespace sol {

class Attention {
 public:
  // Reads the sizes from the attributes of the operator `op`. With `int8` its cache holds codes, and their scales, keys' and values', are
  // its inputs from `scale_port` on.
  Attention(const Attributes& attributes, const char* op, bool int8, size_t scale_port, int64_t layer = CountInput::kNoLayer);

  int64_t QkvSize() const { return (sizes_.heads + 2 * sizes_.kv_heads) * sizes_.head_dim; }
  int64_t OutputSize() const { return sizes_.heads * sizes_.head_dim; }

  // Checks a call of `tokens` > 0 new tokens and makes the outputs of the cache. The caller adds qkv and y.
  AttentionCall Begin(const Context& context, const Tensor& cos, const Tensor& sin, int64_t tokens) const;

  // One token, by a team. The members share a plan's arrays, but each has queries of its own.
  DecodePlan PlanStep(const AttentionCall& call, Arena& arena) const;
  DecodePlan PlanMember(const AttentionCall& call, const DecodePlan& shared, Arena& arena) const;
  // Before the team starts.
  void StartStep(const AttentionCall& call, const DecodePlan& shared) const;
  // Number of members that the step has work for.
  size_t StepMembers(const AttentionCall& call, const DecodePlan& shared) const;
  // Asks for what the member reads first of the cache.
  void Prefetch(const Member& member, size_t members, const AttentionCall& call, const DecodePlan& plan) const;

  // The tasks of a step, in phases: with a sparse plan all of Weigh, all of Score, then all of Attend; else Attend alone. `plan` is the
  // member's. Its queries must be there before the member's first task.
  void PrepareQueries(const AttentionCall& call, const DecodePlan& plan) const;
  // Weighs some old tokens of a KV head for each of its query heads.
  void Weigh(const AttentionCall& call, const DecodePlan& plan, size_t task) const;
  // Adds the query heads' weights of some old tokens up. The last such task selects the tokens to read.
  void Score(const AttentionCall& call, const DecodePlan& plan, size_t task) const;
  size_t ScoreTasks(const AttentionCall& call, const DecodePlan& plan) const;
  // Attends some tokens of a KV head. The head's last such task adds up.
  void Attend(const AttentionCall& call, const DecodePlan& plan, size_t task) const;
  size_t ChunkTasks(const AttentionCall& call, const DecodePlan& plan) const;

  // Several tokens: of one session over all of the cache, of several sessions each over its own. Up to kFewTokens have the bits that each has alone.
  void Rows(const Context& context, const AttentionCall& call) const;

 private:
  // Throws where `tokens` more have no room in the cache, or no positions.
  void CheckPlace(int64_t past, int64_t tokens, int64_t capacity, int64_t positions) const;
  void FewRows(const Context& context, const AttentionCall& call) const;

  const char* op_;
  size_t scale_port_;
  CountInput past_length_, kv_pages_;
  AttentionCall sizes_{};
};

}  // namespace sol
