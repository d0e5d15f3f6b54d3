// Checks norms and activation functions against scalar references without ONNX Runtime, so that it also runs where there is none: an
// emulated Arm. Prints the SIMD target; exits with 1 and one line where a result is off.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "cpu/elementwise/elementwise_kernels.h"
#include "cpu/simd/target.h"

namespace {

std::mt19937 g_random(1);

void Expect(bool good, const char* what, size_t at, size_t n, int kind) {
  if (good) return;
  std::printf("%s is wrong at %zu of %zu, kind %d\n", what, at, n, kind);
  std::exit(1);
}

void CheckActivations() {
  std::vector<float> x, up, h;
  for (float value = -120.0f; value < 120.0f; value += 0.37f) {
    x.push_back(value);
    up.push_back(1.5f);
  }
  h.resize(x.size());
  const auto check = [&](sol::Activation act, auto reference) {
    sol::BestElementwiseKernels().activate(act, x.data(), up.data(), x.size(), h.data());
    for (size_t i = 0; i < x.size(); ++i) {
      const double expected = 1.5 * reference(static_cast<double>(x[i]));
      Expect(std::abs(h[i] - expected) <= 2e-6 * (1 + std::abs(expected)), "activate", i, x.size(), static_cast<int>(act));
    }
  };
  check(sol::Activation::kSilu, [](double v) { return v / (1 + std::exp(-v)); });
  check(sol::Activation::kGelu, [](double v) { return 0.5 * v * (1 + std::erf(v / std::sqrt(2.0))); });
  check(sol::Activation::kGeluTanh,
        [](double v) { return 0.5 * v * (1 + std::tanh(0.7978845608028654 * (v + 0.044715 * v * v * v))); });
  check(sol::Activation::kRelu, [](double v) { return std::max(v, 0.0); });
}

void CheckNormalize(size_t n, bool layer) {
  std::vector<float> x(n), weight(n), bias(n), y(n);
  std::normal_distribution<float> normal(0.5f, 2.0f);
  for (size_t i = 0; i < n; ++i) {
    x[i] = normal(g_random);
    weight[i] = normal(g_random);
    bias[i] = normal(g_random);
  }
  sol::BestElementwiseKernels().normalize(x.data(), n, weight.data(), layer ? bias.data() : nullptr, 1e-5f, y.data());
  double mean = 0, square = 0;
  for (const float value : x) mean += layer ? value / static_cast<double>(n) : 0;
  for (const float value : x) square += (value - mean) * (value - mean) / static_cast<double>(n);
  for (size_t i = 0; i < n; ++i) {
    const double expected = (x[i] - mean) / std::sqrt(square + 1e-5) * weight[i] + (layer ? bias[i] : 0.0f);
    Expect(std::abs(y[i] - expected) <= 2e-6 * (1 + std::abs(expected)), "normalize", i, n, layer);
  }
}

}  // namespace

int main() {
  std::printf("%s\n", sol::BestTargetName());
  CheckActivations();
  for (const size_t n : {32, 96, 133, 576}) {
    CheckNormalize(n, false);
    CheckNormalize(n, true);
  }
  return 0;
}
