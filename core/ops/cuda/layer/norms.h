// Norms that stand between a layer's products: of what attention or the MLP gives, and of q and k. No CUDA header is needed to call this.
#pragma once

#include <cstdint>

#include "cuda/matmul/matmul.h"

namespace sol::cuda {

// y [rows, n] = residual [rows, n] + the norm of its input, as `norm` says. y may be the norm's input or the residual.
void AddNormed(Stream stream, const Source& norm, const float* residual, int64_t rows, int64_t n, float* y);

// The norm of q and k in place. cpu/layer/qk_norm.h has the arithmetic.
struct QkNormCall {
  float* qkv = nullptr;           // [tokens, (H + 2 Hk) D]
  const float* weight = nullptr;  // [(H + Hk) D]
  int64_t tokens = 0;
  int heads = 0, kv_heads = 0, head_dim = 0;
  bool by_row = false;      // all heads of q together, and all of k
  bool layer_norm = false;  // else an RMS norm
  float epsilon = 0;
  // Of the rotation before the norm; rotary_dim is 0 where attention rotates.
  int rotary_dim = 0, table_rows = 0;
  const float* cos = nullptr;
  const float* sin = nullptr;
  const int64_t* past_length = nullptr;
};
void NormQk(Stream stream, const QkNormCall& call);

}  // namespace sol::cuda
