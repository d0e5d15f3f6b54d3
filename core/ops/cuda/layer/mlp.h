// The MLP of a layer: two products and what is between them.
#pragma once

#include "common/onnx/node.h"
#include "cuda/onnx/run.h"
#include "cuda/onnx/weights_input.h"

namespace sol::cuda {

class Mlp {
 public:
  // Reads the attributes `gated` and `activation` of the operator `op`. Counts of active channels are inputs `active_port` and the next one.
  Mlp(const Attributes& attributes, const char* op, size_t active_port, const MatrixInput& up, const WeightInput& up_bias, const MatrixInput& down,
      const WeightInput& down_bias, int64_t layer = CountInput::kNoLayer)
      : up_(up), down_(down), up_bias_(up_bias), down_bias_(down_bias), active_up_(attributes, op, active_port, "active_up", layer),
        active_down_(attributes, op, active_port + 1, "active_down", layer), gated_(attributes.Int("gated", 0, 1) != 0),
        activation_(ReadActivation(attributes, op)) {}

  int64_t Channels() const { return up_.Shape().K; }

  struct Memory {
    Codes up, down;
    float* hidden;  // [rows, N of up], of kRowsAtOnce rows at most
  };
  Memory Place(int64_t rows, Scratch& scratch) const {
    const int64_t most = rows < kRowsAtOnce ? rows : kRowsAtOnce;
    Memory memory;
    memory.up = PlaceCodes(up_.Shape(), most, scratch);
    memory.hidden = scratch.Take<float>(static_cast<size_t>(most) * static_cast<size_t>(up_.Shape().N));
    memory.down = PlaceCodes(down_.Shape(), most, scratch);
    return memory;
  }

  // y [rows, K] of the source's rows; adds `residual` [rows, K] where it is not null.
  void Launch(const Run& run, Source source, int64_t rows, const Memory& memory, const float* residual, float* y) const {
    const Context& inputs = run.Inputs();
    const Weights up = up_.Read(inputs), down = down_.Read(inputs);
    const float* up_bias = up_bias_.Read<float>(inputs);
    const float* down_bias = down_bias_.Read<float>(inputs);
    const ActiveChannels active_up{active_up_.Where(inputs)}, active_down{active_down_.Where(inputs)};
    Source hidden;
    hidden.kind = gated_ ? Source::kGatedActivation : Source::kActivation;
    hidden.x = memory.hidden;
    hidden.activation = activation_;
    for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
      const int64_t count = rows - first < kRowsAtOnce ? rows - first : kRowsAtOnce;
      QuantizeAndMultiply(run.Queue(), up, source, active_up, count, memory.up, up_bias, nullptr, memory.hidden);
      QuantizeAndMultiply(run.Queue(), down, hidden, active_down, count, memory.down, down_bias, residual, y);
      source.x += count * up.K;
      y += count * up.K;
      if (residual != nullptr) residual += count * up.K;
    }
  }

 private:
  MatrixInput up_, down_;
  WeightInput up_bias_, down_bias_;
  CountInput active_up_, active_down_;
  bool gated_;
  Activation activation_;
};

}  // namespace sol::cuda
