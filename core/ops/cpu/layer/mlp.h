// The MLP of a layer, reading only the active input channels of either matrix:
//
//   u [U] = x [K] W_up + bias        gated: U = 2 I, the gate's I outputs first; else U = I
//   h [I] = act(u[:I]) * u[I:]       gated; else h = act(u)
//   y [K] = h W_down + bias
//
// One token goes through Up(), Activate and Down() in three phases of a team, which the operators write out; many tokens through Rows.
#pragma once

#include "common/onnx/node.h"
#include "cpu/elementwise/elementwise_kernels.h"
#include "cpu/matmul/channel_matmul.h"
#include "cpu/threads/team.h"

namespace sol {

class Mlp {
 public:
  // Number of input channels of either matrix that are read.
  struct ActiveChannels {
    size_t up, down;
  };

  // Both matrices are channel-major; a bias may be null. Reads the attributes `gated` and `activation` of the operator `op`.
  // The counts of active channels, 0 meaning all, are inputs `active_port` and the next one; of `layer`, where they hold all layers'.
  Mlp(const Attributes& attributes, const char* op, size_t active_port, const Nested& up, const float* up_bias, const Nested& down,
      const float* down_bias, int64_t layer = CountInput::kNoLayer);

  const ChannelMatMul& Up() const { return up_; }
  const ChannelMatMul& Down() const { return down_; }
  // K and I.
  size_t Channels() const { return up_.Inputs(); }
  size_t Inner() const { return down_.Inputs(); }

  ActiveChannels ReadActive(const Context& context) const { return {up_.ReadActive(context), down_.ReadActive(context)}; }

  // One token: a task turns some channels of u, which it adds up of the splits' sums, to `hidden` [I].
  size_t ActivateTasks(size_t members) const { return TasksOf(Inner(), kActivateStep, Inner(), members); }
  void Activate(size_t task, size_t tasks, float* up_sums, float* hidden) const;

  // y [tokens, K] of x [tokens, K]; adds `residual` [tokens, K] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, ActiveChannels active, const float* residual, float* y) const;

 private:
  static constexpr size_t kActivateStep = 128;

  void Chunk(const Context& context, const float* x, size_t tokens, ActiveChannels active, const float* residual, float* y) const;

  ChannelMatMul up_, down_;
  bool gated_;
  Activation activation_;
};

}  // namespace sol
