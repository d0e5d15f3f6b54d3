// y [N] = x [K] W of which only the highest outputs are wanted exactly: all at 4 bits, then those with the highest scores, the candidates,
// at all of the matrix's bits. Of the rows of the others the residual planes are not read.
#pragma once

#include <cstddef>

#include "cpu/matmul/block_matmul.h"

namespace sol {

class ScreenedProduct {
 public:
  // With `candidates` below w.N. `tail_offset` is added to the outputs that are no candidates.
  ScreenedProduct(const Nested& w, size_t candidates, float tail_offset);

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
