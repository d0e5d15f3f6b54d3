// y [N] = x [K] W for a block-major matrix W, or for one of 3 bits: one token in tasks that share the outputs, or many tokens in tiles.
#pragma once

#include <algorithm>
#include <memory>

#include "common/onnx/node.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/packed_matrix.h"
#include "cpu/matmul/token_input.h"
#include "cpu/threads/team.h"

namespace sol {

class BlockMatMul {
 public:
  explicit BlockMatMul(const Nested& w) : BlockMatMul(w, w.N) {}
  // Of the first `outputs` outputs of W alone.
  BlockMatMul(const Nested& w, size_t outputs)
      : w_(w), outputs_(outputs), step_(w.bits == 3 ? 2 * kCodebookPanel : 32), copy_(std::make_unique<PackedCopy>()) {}

  size_t Inputs() const { return w_.K; }
  size_t Outputs() const { return outputs_; }

  // One token. Tasks are as wide as can be: a processor reads beyond the end of every run of memory, and what it reads there is lost.
  size_t Tasks(size_t members) const {
    constexpr size_t kMost = 32768;  // outputs whose sums stay in a core's own cache
    return TasksOf(outputs_, step_, kMost, members);
  }
  Range TaskOutputs(size_t task, size_t tasks) const { return ShareOf(outputs_, step_, task, tasks); }
  TokenInput PlaceInput(Arena& arena) const {
    return w_.bits == 3 ? TokenInput::ChannelMajor(w_, arena) : TokenInput::BlockMajor(w_, arena);
  }
  // The copy of a matrix of 3 bits, whose N is a multiple of 256, that a step reads in its place; or null.
  std::shared_ptr<const PackedMatrix> Copy(const Context& context) const { return w_.bits == 3 ? copy_->Get(context, w_, 1) : nullptr; }
  // Writes the outputs of one task to y [N].
  void Product(const TokenInput& x, const PackedMatrix* copy, size_t task, size_t tasks, float* y) const;

  // y [tokens, N] of x [tokens, K].
  void Rows(const Context& context, const float* x, size_t tokens, float* y) const;

 private:
  Nested w_;
  size_t outputs_, step_;
  std::unique_ptr<PackedCopy> copy_;
};

}  // namespace sol
