// The MLP of a layer, reading only the input channels of largest magnitude of either matrix: one token by a team, or many tokens
// in tiles.
#pragma once

#include <algorithm>
#include <string>

#include "common/onnx/node.h"
#include "cpu/matmul/channel_matmul.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/token_input.h"
#include "cpu/threads/team.h"

namespace sol {

class Mlp {
 public:
  // Channels kept at the inputs of the two matrices.
  struct Keep {
    size_t in, mid;
  };

  // Memory of one token: what the team shares and what every member has for itself.
  struct Shared {
    float* up;      // sums
    float* hidden;  // [I]
    float* down;    // sums
  };
  struct Own {
    TokenInput up, down;
  };

  // Both matrices are channel-major; a bias may be null. Reads the attributes `gated` and `activation` of the operator `op`.
  // The counts of channels to keep, 0 meaning all, are inputs `keep_port` and the next one; of `layer`, where they hold all layers'.
  Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
      const float* down_bias, int64_t layer = CountInput::kNoLayer);

  size_t Channels() const { return up_.Inputs(); }

  Keep ReadKeep(const Context& context) const { return {up_.ReadKeep(context), down_.ReadKeep(context)}; }

  Shared PlaceShared(Arena& arena) const { return {up_.PlaceSums(arena), arena.Take<float>(Inner()), down_.PlaceSums(arena)}; }
  Own PlaceOwn(Arena& arena) const { return {up_.PlaceInput(arena), down_.PlaceInput(arena)}; }

  // The last three phases of a team. input() gives x [K] to a member; y [K] is the product and residual() [K] where that is not null.
  template <class Input, class Residual>
  void Step(Member& member, size_t members, const Shared& shared, Own& own, Keep keep, const Input& input, const Residual& residual,
            float* y) const {
    const size_t up_tasks = up_.Tasks(members), down_tasks = down_.Tasks(members);
    member.Run(
        up_tasks, [&] { own.up.Read(input(), keep.in); }, [&](size_t task) { up_.Row(own.up, task, up_tasks, shared.up); },
        [&] { down_.Fetch(member, members, keep.mid); });
    const size_t shares = TasksOf(Inner(), kActivateStep, Inner(), members);
    member.Run(shares, [] {}, [&](size_t task) { Activate(ShareOf(Inner(), kActivateStep, task, shares), shared); });
    member.Finish(
        down_tasks, [&] { own.down.Read(shared.hidden, keep.mid); },
        [&](size_t task) { down_.Row(own.down, task, down_tasks, shared.down); }, [&] { down_.Total(shared.down, residual(), y); });
  }

  // Asks for what the member reads first in Step.
  void FetchStep(const Member& member, size_t members, Keep keep) const { up_.Fetch(member, members, keep.in); }

  // y [tokens, K] of x [tokens, K]; adds `residual` [tokens, K] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

 private:
  static constexpr size_t kActivateStep = 128;

  size_t Inner() const { return down_.Inputs(); }

  // Of the hidden channels.
  void Activate(Range channels, const Shared& shared) const;

  void Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

  ChannelMatMul up_, down_;
  bool gated_;
  Activation activation_;
};

}  // namespace sol
