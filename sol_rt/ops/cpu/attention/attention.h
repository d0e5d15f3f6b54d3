// Attention over the cache: one token by a team, or many tokens. docs/bundle.md section 3, SparseAttention, is its specification.
#pragma once

#include <array>
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

  // One token. A plan's arrays are shared by the team, but every member has queries of its own.
  DecodePlan PlanStep(const AttentionCall& call, Arena& arena) const;
  DecodePlan PlanOwn(const AttentionCall& call, const DecodePlan& plan, Arena& arena) const;
  // Before the team starts.
  void StartStep(const AttentionCall& call, const DecodePlan& plan) const;
  // How many members the step has work for.
  size_t StepMembers(const AttentionCall& call, const DecodePlan& plan) const;
  // Asks for what the member reads first in Step.
  void FetchStep(const Member& member, size_t members, const AttentionCall& call, const DecodePlan& plan) const;
  // Three phases of a team, one where all tokens are read. A member makes its own qkv by input() before it reads it; one with nothing left
  // to do calls ahead().
  template <class Input, class Ahead>
  void Step(Member& member, const AttentionCall& call, const DecodePlan& own, const Input& input, const Ahead& ahead) const {
    bool prepared = false;
    const auto prepare = [&] {
      if (prepared) return;
      input();
      Prepare(call, own);
      prepared = true;
    };
    if (own.sparse) {
      member.Run(ScoreTasks(call, own), prepare, [&](size_t task) { Weigh(call, own, task); });
      member.Run(ScoreTasks(call, own), [] {}, [&](size_t task) { Score(call, own, task); });
    }
    member.Run(ChunkTasks(call, own), prepare, [&](size_t task) { Attend(call, own, task); }, ahead);
  }

  void Rows(const Context& context, const AttentionCall& call) const;

 private:
  // Rotates a member's queries.
  void Prepare(const AttentionCall& call, const DecodePlan& own) const;
  // Weighs some old tokens of a KV head for each of its query heads; when all are weighed, adds the heads' weights up. The last such task
  // selects.
  size_t ScoreTasks(const AttentionCall& call, const DecodePlan& own) const;
  void Weigh(const AttentionCall& call, const DecodePlan& own, size_t task) const;
  void Score(const AttentionCall& call, const DecodePlan& own, size_t task) const;
  // Attends some tokens of a KV head; the last such task adds up.
  size_t ChunkTasks(const AttentionCall& call, const DecodePlan& own) const;
  void Attend(const AttentionCall& call, const DecodePlan& own, size_t task) const;

  const char* op_;
  size_t scale_port_;
  CountInput past_length_, attn_keep_;
  AttentionCall sizes_{};
};

}  // namespace sol
