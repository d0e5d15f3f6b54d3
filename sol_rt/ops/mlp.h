// The MLP of a layer, reading only the input channels of largest magnitude of either matrix: one token by a team, or many tokens
// in tiles.
#pragma once

#include <algorithm>
#include <string>

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
    float* hidden;  // [up.N]
    float* sums;    // [parts, K]
  };
  struct Own {
    TokenInput up, down;
  };

  // Both matrices are channel-major; a bias may be null. Reads the attributes `gated` and `activation` of the operator `op`.
  // The counts of channels to keep, 0 meaning all, are inputs `keep_port` and the next one.
  Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
      const float* down_bias);

  size_t Channels() const { return up_.K; }

  Keep ReadKeep(const Context& context) const;

  Shared PlaceShared(Arena& arena) const { return {arena.Take<float>(up_.N), arena.Take<float>(Parts() * up_.K)}; }
  Own PlaceOwn(Arena& arena) const {
    return {TokenInput::ChannelMajor(up_, arena), TokenInput::ChannelMajor(down_, arena)};
  }

  // The last two phases of a team. input() gives x [K] to a member; y [K] is the product and `residual` [K] where that is not null.
  template <class Input>
  void Step(Member& member, size_t members, const Shared& shared, Own& own, Keep keep, const Input& input, const float* residual,
            float* y) const {
    const size_t up_tasks = UpTasks(members), down_tasks = DownTasks(members);
    member.Run(
        up_tasks, [&] { own.up.Read(input(), keep.in); }, [&](size_t task) { Up(own.up, task, up_tasks, shared.hidden); },
        [&] { FetchDown(member.FirstOf(down_tasks), down_tasks, keep); });
    member.Finish(
        down_tasks, [&] { own.down.Read(shared.hidden, keep.mid); },
        [&](size_t task) { Down(own.down, task, down_tasks, shared.sums); }, [&] { AddParts(shared.sums, residual, y); });
  }

  // Asks for what the member reads first in Step.
  void FetchStep(const Member& member, size_t members, Keep keep) const {
    const size_t tasks = UpTasks(members);
    FetchUp(member.FirstOf(tasks), tasks, keep);
  }

  // y [tokens, K] of x [tokens, K]; adds `residual` [tokens, K] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

 private:
  size_t Inner() const { return down_.K; }

  // Asks for the first bytes that a task reads.
  void FetchUp(size_t task, size_t tasks, Keep keep) const;
  void FetchDown(size_t task, size_t tasks, Keep keep) const;

  // Outputs of the first matrix are shared out among tasks.
  size_t UpTasks(size_t members) const;
  void Up(const TokenInput& x, size_t task, size_t tasks, float* hidden) const;

  // The second has few outputs of many channels, whose rows are read whole: a task has some of the channels. The number of parts is
  // fixed, as it decides the order of the sums.
  size_t Parts() const;
  Range BlocksOf(size_t part) const;
  size_t DownTasks(size_t members) const;
  void Down(const TokenInput& x, size_t task, size_t tasks, float* sums) const;
  void AddParts(const float* sums, const float* residual, float* y) const;

  void Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const;

  const char* op_;
  CountInput keep_in_, keep_mid_;
  Nested up_, down_;
  const float* up_bias_;
  const float* down_bias_;
  bool gated_;
  Activation activation_;
};

}  // namespace sol
