// The arithmetic on vectors of float32 between products, chosen by SIMD target.
#pragma once

#include <cstddef>

#include "common/activation.h"

namespace sol {

struct ElementwiseKernels {
  // h[i] = act(gate[i]) * up[i], or act(gate[i]) where up is null. h may be gate.
  void (*activate)(Activation act, const float* gate, const float* up, size_t n, float* h);

  // y = x / sqrt(mean(x^2) + epsilon) * weight, or where there is a bias (x - mean) / sqrt(variance + epsilon) * weight + bias.
  // y may be x.
  void (*normalize)(const float* x, size_t n, const float* weight, const float* bias, float epsilon, float* y);
};

// The best set for this processor.
const ElementwiseKernels& BestElementwiseKernels();

}  // namespace sol
