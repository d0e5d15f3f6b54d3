// The norm of q and k, in place in the rows of qkv [(H + 2 Hk) D], before attention reads them:
//
//   head    every head of q and k by itself, [D]
//   row     all heads of q together [H D], and all of k [Hk D]
//
// The norm is an RMS norm or a layer norm without a bias, like those of the layer, with a weight [(H + Hk) D] for every channel. A layer that norms
// after the rotary embedding has q and k rotated here too; attention then rotates nothing.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "common/inputs/layer_inputs.h"
#include "common/onnx/node.h"
#include "cpu/elementwise/elementwise_kernels.h"

namespace sol {

class QkNorm {
 public:
  struct Sizes {
    int64_t heads, kv_heads, head_dim;
    int64_t rotary_dim;  // of the rotation before the norm; 0: none
  };
  // The sizes of a node, which attention checks.
  static Sizes ReadSizes(const Attributes& attributes) {
    const bool rotates = attributes.IntOr("qk_norm_after_rope", 0) != 0;
    return {attributes.Int("num_heads"), attributes.Int("kv_heads"), attributes.Int("head_dim"), rotates ? attributes.Int("rotary_dim") : 0};
  }

  QkNorm() = default;  // none
  QkNorm(QkNormKind kind, const Sizes& sizes, const float* weight, bool layer_norm, float epsilon, const char* op, const Tensor& cos,
         const Tensor& sin)
      : sizes_(sizes), weight_(weight), epsilon_(epsilon), by_row_(kind == QkNormKind::kRow) {
    if (layer_norm) zeros_.assign(static_cast<size_t>((sizes.heads + sizes.kv_heads) * sizes.head_dim), 0.0f);
    if (sizes.rotary_dim > 0) {
      Expect(op, "cos", cos, kFloat, {-1, sizes.rotary_dim / 2});
      Expect(op, "sin", sin, kFloat, {cos.dims[0], sizes.rotary_dim / 2});
      cos_ = cos.As<float>();
      sin_ = sin.As<float>();
    }
  }

  explicit operator bool() const { return weight_ != nullptr; }

  // One token.
  void Row(int64_t position, float* qkv) const {
    if (sizes_.rotary_dim > 0) {
      for (int64_t head = 0; head < sizes_.heads + sizes_.kv_heads; ++head) Rotate(position, qkv + head * sizes_.head_dim);
    }
    if (by_row_) {
      NormOne(qkv, 0, sizes_.heads * sizes_.head_dim);
      NormOne(qkv, sizes_.heads * sizes_.head_dim, sizes_.kv_heads * sizes_.head_dim);
      return;
    }
    for (int64_t head = 0; head < sizes_.heads + sizes_.kv_heads; ++head) NormOne(qkv, head * sizes_.head_dim, sizes_.head_dim);
  }

  // qkv [tokens, (H + 2 Hk) D]. `position` gives that of a token.
  template <class Position>
  void Rows(const Context& context, const Position& position, size_t tokens, float* qkv) const {
    constexpr size_t kRows = 16;
    const auto width = static_cast<size_t>((sizes_.heads + 2 * sizes_.kv_heads) * sizes_.head_dim);
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) Row(position(t), qkv + t * width);
    });
  }

 private:
  void NormOne(float* qkv, int64_t begin, int64_t count) const {
    const float* bias = zeros_.empty() ? nullptr : zeros_.data();
    BestElementwiseKernels().normalize(qkv + begin, static_cast<size_t>(count), weight_ + begin, bias, epsilon_, qkv + begin);
  }

  // Half-split rotation, as attention's.
  void Rotate(int64_t position, float* row) const {
    const int64_t half = sizes_.rotary_dim / 2;
    const float* cos = cos_ + position * half;
    const float* sin = sin_ + position * half;
    for (int64_t i = 0; i < half; ++i) {
      const float a = row[i], b = row[i + half];
      row[i] = a * cos[i] - b * sin[i];
      row[i + half] = a * sin[i] + b * cos[i];
    }
  }

  Sizes sizes_{};
  const float* weight_ = nullptr;
  const float* cos_ = nullptr;
  const float* sin_ = nullptr;
  float epsilon_ = 0;
  bool by_row_ = false;
  std::vector<float> zeros_;  // the bias that has the mean subtracted
};

}  // namespace sol
