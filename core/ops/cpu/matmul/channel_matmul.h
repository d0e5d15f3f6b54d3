// y [N] = x [K] W + bias for a channel-major matrix W, reading only the `active` channels of x of largest magnitude.
//
// One token is multiplied by a team, split along K. Its product is three steps:
//
//   input.Quantize(x, active)                       every member, for itself: codes of x, and the list of channels that are not zero
//   Product(input, task, tasks, sums)               the team, task by task: sums [splits, N]
//   Total(sums, residual, y)                        y = the splits' sums added up, plus the residual
//
// A task reads rows of W whole, one after the other, at the speed of a plain read; to read only the beginnings or ends of rows costs up to
// a third of it. So W is split along its channels, and every split has sums of its own. The number of splits depends on the matrix alone,
// for it decides the order of the additions.
//
// Several tokens are multiplied by Rows. Up to kFewTokens have the splits and the order of the additions of one, so that each has the bits that it has
// alone; every weight is read once for all of them, or where few channels are active, each token reads its own. More are multiplied in tiles of 64
// outputs over all channels, for which every weight is read once for 128 tokens.
#pragma once

#include <algorithm>
#include <cstddef>
#include <memory>

#include "common/onnx/node.h"
#include "cpu/few_tokens.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/packed_matrix.h"
#include "cpu/matmul/token_input.h"
#include "cpu/threads/team.h"

namespace sol {

// Bounds of a product split along K: the number of splits, and the outputs of a task, whose sums stay in the core's own cache.
struct SplitK {
  size_t most_splits, most_outputs;
};

class ChannelMatMul {
 public:
  static constexpr size_t kTokensAtOnce = 128;  // of a tile: its sums stay in the core's own cache

  // The count of active channels, 0 meaning all, is the input `active_port` of the operator `op`, named `active_name`; of `layer`, where
  // it holds all layers'. bias: [N] or null.
  ChannelMatMul(const Attributes& attributes, const char* op, size_t active_port, const char* active_name, const Nested& w, const float* bias,
                SplitK split, int64_t layer = CountInput::kNoLayer)
      : op_(op), active_(attributes, op, active_port, active_name, layer), w_(w), bias_(bias),
        splits_(std::min(split.most_splits, w.K / kBlock)), most_outputs_(split.most_outputs), copy_(std::make_unique<PackedCopy>()) {}

  size_t Inputs() const { return w_.K; }
  size_t Outputs() const { return w_.N; }

  // Number of channels that this call reads.
  size_t ReadActive(const Context& context) const;

  // Memory of one token: every member has an input of its own, and the team shares the sums.
  TokenInput PlaceInput(Arena& arena) const { return TokenInput::ChannelMajor(w_, arena); }
  float* PlaceSums(Arena& arena, size_t tokens = 1) const { return arena.Take<float>(tokens * SumsOfToken()); }
  // Floats of one token's sums: whole tiles for each split.
  size_t SumsOfToken() const { return splits_ * Stride(); }

  // A multiple of the splits. Where there are more members than splits, they share the outputs of one.
  size_t Tasks(size_t members) const {
    const size_t wanted = std::min((members + splits_ - 1) / splits_, (w_.N + kStep - 1) / kStep);
    return splits_ * std::max((w_.N + most_outputs_ - 1) / most_outputs_, wanted);
  }

  // The copy of the matrix that a step with so many active channels reads in its place, or null.
  std::shared_ptr<const PackedMatrix> Copy(const Context& context, size_t active) const;

  // Writes one task's outputs of its split: sums[split, n] = the sum over the split's active channels k of x[k] W[k, n]. The first split
  // begins with the bias.
  void Product(const TokenInput& x, const PackedMatrix* copy, size_t task, size_t tasks, float* sums) const {
    const size_t split = task / (tasks / splits_);
    const Range blocks = BlocksOf(task, tasks), outputs = OutputsOf(task, tasks);
    float* to = sums + split * Stride();
    BeginSums(split, outputs, to);
    const MatMulKernels& kernels = BestMatMulKernels();
    const auto row = w_.bits > 3 ? kernels.row_channel_major : kernels.row_codebook;
    Nested w = w_;
    if (copy != nullptr) w.packed = copy->Data();
    row(w, x.Codes(), x.Active(), blocks.begin, blocks.end, outputs.begin, outputs.end, to);
    EndSums(split, outputs, to);
  }

  // Asks for what the member reads first in Product. Only where every channel is active is that known before.
  void Prefetch(const Member& member, size_t members, size_t active, const PackedMatrix* copy) const;

  // Adds the splits' sums of the outputs begin … end - 1 to the first split's.
  void AddSplits(size_t begin, size_t end, float* sums) const;
  // y [N] = the sums of all splits, plus `residual` [N] where it is not null.
  void Total(const float* sums, const float* residual, float* y) const;

  // y [tokens, N] of x [tokens, K]; adds `residual` [tokens, N] where it is not null.
  void Rows(const Context& context, const float* x, size_t tokens, size_t active, const float* residual, float* y) const;

  // The sums [tokens, SumsOfToken()] of at most kFewTokens tokens x [tokens, K].
  void FewSums(const Context& context, const float* x, size_t tokens, size_t active, float* sums) const;

  // The two steps of Rows for more. Codes of several tokens:
  Activations PlaceRows(size_t tokens, Arena& arena) const;
  void Quantize(const Context& context, const float* x, size_t tokens, size_t active, const Activations& q) const;
  // and `tokens` times 64 outputs from n on, n a multiple of 64, with their bias.
  void Tile(const Activations& q, size_t first, size_t tokens, size_t n, size_t width, float* sums) const;

 private:
  static constexpr size_t kStep = 128;  // outputs of whole vectors

  size_t Stride() const { return (w_.N + kTile - 1) / kTile * kTile; }  // from the sums of a split to those of the next

  // What the sums of some outputs are before their product and after it: the first split's have the bias.
  void BeginSums(size_t split, Range outputs, float* sums) const {
    if (w_.bits > 3 && split == 0 && bias_ != nullptr) {
      std::copy(bias_ + outputs.begin, bias_ + outputs.end, sums + outputs.begin);
    } else {
      std::fill(sums + outputs.begin, sums + outputs.end, 0.0f);
    }
  }
  void EndSums(size_t split, Range outputs, float* sums) const {
    if (w_.bits > 3 || split > 0 || bias_ == nullptr) return;
    for (size_t n = outputs.begin; n < outputs.end; ++n) sums[n] += bias_[n];
  }

  Range BlocksOf(size_t task, size_t tasks) const { return ShareOf(w_.K / kBlock, 1, task / (tasks / splits_), splits_); }
  Range OutputsOf(size_t task, size_t tasks) const {
    const size_t ranges = tasks / splits_;
    return ShareOf(w_.N, kStep, task % ranges, ranges);
  }

  const char* op_;
  CountInput active_;
  Nested w_;
  const float* bias_;
  size_t splits_, most_outputs_;
  std::unique_ptr<PackedCopy> copy_;
};

}  // namespace sol
