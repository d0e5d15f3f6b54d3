// y = x W + bias for a channel-major matrix W, reading only the input channels of largest magnitude: one token by a team, or many
// tokens in tiles.
#pragma once

#include <cstddef>

#include "common/onnx/node.h"
#include "cpu/matmul/channel_product.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/token_input.h"
#include "cpu/threads/team.h"

namespace sol {

class ChannelMatMul {
 public:
  static constexpr size_t kTokensAtOnce = 128;  // of a tile: its sums stay in the core's own cache

  // Bounds of ChannelProduct.
  struct Cut {
    size_t most_parts, most_outputs;
  };

  // The count of channels to keep, 0 meaning all, is the input `keep_port` of the operator `op`, named `keep_name`; of `layer`, where it
  // holds all layers'. bias: [N] or null.
  ChannelMatMul(const Attributes& attributes, const char* op, size_t keep_port, const char* keep_name, const Nested& w, const float* bias,
                Cut cut, int64_t layer = CountInput::kNoLayer)
      : op_(op), keep_(attributes, op, keep_port, keep_name, layer), w_(w), bias_(bias), row_(w, bias, cut.most_parts, cut.most_outputs) {}

  size_t Inputs() const { return w_.K; }
  size_t Outputs() const { return w_.N; }

  // How many channels this call keeps.
  size_t ReadKeep(const Context& context) const;

  // One token, of which every member has an input of its own. The team shares the sums, whose parts are to be added up.
  TokenInput PlaceInput(Arena& arena) const { return TokenInput::ChannelMajor(w_, arena); }
  float* PlaceSums(Arena& arena) const { return arena.Take<float>(row_.Sums()); }
  size_t Tasks(size_t members) const { return row_.Tasks(members); }
  void Row(const TokenInput& x, size_t task, size_t tasks, float* sums) const { row_.Row(x, task, tasks, sums); }
  // Asks for what the member reads first, where every channel counts.
  void Fetch(const Member& member, size_t members, size_t keep) const;
  // The outputs begin … end - 1, into the first part's sums.
  void AddParts(size_t begin, size_t end, float* sums) const { row_.AddParts(begin, end, sums); }
  // y [N] of the sums; adds `residual` [N] where it is not null.
  void Total(const float* sums, const float* residual, float* y) const;

  // y [tokens, N] of x [tokens, K]; adds `residual` [tokens, N] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, size_t keep, const float* residual, float* y) const;

  // The two steps of Rows. Codes of several tokens:
  Activations PlaceRows(size_t tokens, Arena& arena) const;
  void Quantize(const Context& context, const float* x, size_t tokens, size_t keep, const Activations& q) const;
  // and `tokens` times 64 outputs from n on, n a multiple of 64, with their bias.
  void Tile(const Activations& q, size_t first, size_t tokens, size_t n, size_t width, float* sums) const;

 private:
  const char* op_;
  CountInput keep_;
  Nested w_;
  const float* bias_;
  ChannelProduct row_;
};

}  // namespace sol
