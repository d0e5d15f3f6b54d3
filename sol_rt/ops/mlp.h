// The MLP of a layer, reading only the input channels of largest magnitude of either matrix: one token by a team, or many tokens
// in tiles.
#pragma once

#include <algorithm>
#include <string>

#include "channel_product.h"
#include "nested.h"
#include "op.h"
#include "team.h"
#include "token_input.h"

namespace sol {

class Mlp {
 public:
  // Channels kept at the inputs of the two matrices.
  struct Keep {
    size_t in, mid;
  };

  // Memory of one token: what the team shares and what every member has for itself.
  struct Shared {
    float* up;      // [parts, up.N]
    float* hidden;  // [I]
    float* down;    // [parts, K]
  };
  struct Own {
    TokenInput up, down;
  };

  // Both matrices are channel-major; a bias may be null. Reads the attributes `gated` and `activation` of the operator `op`.
  // The counts of channels to keep, 0 meaning all, are inputs `keep_port` and the next one; of `layer`, where they hold all layers'.
  Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
      const float* down_bias, int64_t layer = CountInput::kNoLayer);

  size_t Channels() const { return up_.K; }

  Keep ReadKeep(const Context& context) const;

  Shared PlaceShared(Arena& arena) const {
    return {arena.Take<float>(up_row_.Sums()), arena.Take<float>(Inner()), arena.Take<float>(down_row_.Sums())};
  }
  Own PlaceOwn(Arena& arena) const {
    return {TokenInput::ChannelMajor(up_, arena), TokenInput::ChannelMajor(down_, arena)};
  }

  // The last three phases of a team. input() gives x [K] to a member; y [K] is the product and `residual` [K] where that is not null.
  template <class Input>
  void Step(Member& member, size_t members, const Shared& shared, Own& own, Keep keep, const Input& input, const float* residual,
            float* y) const {
    const size_t up_tasks = up_row_.Tasks(members), down_tasks = down_row_.Tasks(members);
    member.Run(
        up_tasks, [&] { own.up.Read(input(), keep.in); }, [&](size_t task) { up_row_.Row(own.up, task, up_tasks, shared.up); },
        [&] {
          if (keep.mid == Inner()) down_row_.Fetch(member.FirstOf(down_tasks), down_tasks, kFetchedBytes);
        });
    const size_t shares = TasksOf(Inner(), kActivateStep, Inner(), members);
    member.Run(shares, [] {}, [&](size_t task) { Activate(ShareOf(Inner(), kActivateStep, task, shares), shared); });
    member.Finish(
        down_tasks, [&] { own.down.Read(shared.hidden, keep.mid); },
        [&](size_t task) { down_row_.Row(own.down, task, down_tasks, shared.down); }, [&] { Add(shared.down, residual, y); });
  }

  // Asks for what the member reads first in Step.
  void FetchStep(const Member& member, size_t members, Keep keep) const {
    const size_t tasks = up_row_.Tasks(members);
    if (keep.in == up_.K) up_row_.Fetch(member.FirstOf(tasks), tasks, kFetchedBytes);
  }

  // y [tokens, K] of x [tokens, K]; adds `residual` [tokens, K] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

 private:
  static constexpr size_t kFetchedBytes = 16384;  // about what memory gives while a phase begins
  static constexpr size_t kActivateStep = 128;

  size_t Inner() const { return down_.K; }

  // Of the hidden channels.
  void Activate(Range channels, const Shared& shared) const;

  // All parts, into y.
  void Add(float* sums, const float* residual, float* y) const;

  void Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

  const char* op_;
  CountInput keep_in_, keep_mid_;
  Nested up_, down_;
  const float* up_bias_;
  const float* down_bias_;
  ChannelProduct up_row_, down_row_;
  bool gated_;
  Activation activation_;
};

}  // namespace sol
