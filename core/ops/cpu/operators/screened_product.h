// y [N] = x [K] W of which only the highest outputs are wanted exactly: all by a screen of few bits, then those with the highest scores, the
// candidates, at all of the matrix's bits. Of the others nothing but the screen is read.
#pragma once

#include <cstddef>

#include "cpu/operators/block_matmul.h"

namespace sol {

class ScreenedProduct {
 public:
  // With `candidates` below w.N. `screen` gives the scores: w at 4 bits, or a matrix of 3 bits with at least as many outputs, a multiple of 32
  // of which are w's. `tail_offset` is added to the outputs that are no candidates.
  ScreenedProduct(const Nested& w, const Nested& screen, size_t candidates, float tail_offset)
      : w_(w), screen_(screen, w.N), candidates_(candidates), tail_offset_(tail_offset) {}

  // y [tokens, N] of x [tokens, K]. Each token has candidates of its own.
  void Compute(const Context& context, const float* x, size_t tokens, float* y) const {
    if (tokens == 1) {
      One(context, x, y);
    } else {
      Rows(context, x, tokens, y);
    }
  }

 private:
  void One(const Context& context, const float* x, float* y) const;
  void Rows(const Context& context, const float* x, size_t tokens, float* y) const;
  // exact[i] = x W[:, rows[i]] for begin <= i < end.
  void Exact(const TokenInput& x, const uint32_t* rows, size_t begin, size_t end, float* exact) const;
  void AddOffset(float* y, size_t begin, size_t end) const;

  Nested w_;
  BlockMatMul screen_;
  size_t candidates_;
  float tail_offset_;
};

}  // namespace sol
