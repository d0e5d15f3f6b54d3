// RMS or layer normalization.
#pragma once

#include <algorithm>

#include "common/onnx/node.h"
#include "cpu/elementwise/elementwise_kernels.h"

namespace sol {

class Norm {
 public:
  Norm() = default;
  // bias: null for the RMS norm.
  Norm(const float* weight, const float* bias, size_t n, float epsilon) : weight_(weight), bias_(bias), n_(n), epsilon_(epsilon) {}

  // One token, [n].
  void Row(const float* x, float* y) const { BestElementwiseKernels().normalize(x, n_, weight_, bias_, epsilon_, y); }

  void Rows(const Context& context, const float* x, size_t tokens, float* y) const {
    constexpr size_t kRows = 16;
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) Row(x + t * n_, y + t * n_);
    });
  }

  // y = residual + the norm of x, all [tokens, n]; y may be x. x is overwritten.
  void AddRows(const Context& context, float* x, const float* residual, size_t tokens, float* y) const {
    constexpr size_t kRows = 16;
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
        Row(x + t * n_, x + t * n_);
        for (size_t i = t * n_; i < (t + 1) * n_; ++i) y[i] = residual[i] + x[i];
      }
    });
  }

 private:
  const float* weight_ = nullptr;
  const float* bias_ = nullptr;
  size_t n_ = 0;
  float epsilon_ = 0;
};

}  // namespace sol
