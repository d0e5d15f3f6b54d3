// NestedMatMul(x, base, scale, zero[, plane1[, plane2]]) -> y: x [..., K] times a block-major matrix.

#include <algorithm>
#include <array>

#include "nested.h"
#include "nested_inputs.h"
#include "op.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = 128;  // a task's sums stay in the core's own cache

class NestedMatMul {
 public:
  static constexpr const char* kName = "NestedMatMul";
  static constexpr std::array<Port, 6> kInputs{{{"x", kFloat},
                                                {"base", kUInt8},
                                                {"scale", kFloat16},
                                                {"zero", kUInt8},
                                                {"plane1", kUInt8, kOptional},
                                                {"plane2", kUInt8, kOptional}}};
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedMatMul(const Attributes& attributes) {
    w_ = ReadOnlyMatrix(attributes, kName);
  }

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(w_.K)) {
      throw Error(std::string(kName) + ": input x: got shape " + x.Shape() + ", expected [..., " + std::to_string(w_.K) +
                  "]");
    }
    auto shape = x.dims;
    shape[x.rank - 1] = static_cast<int64_t>(w_.N);
    float* y = context.Output<float>(0, shape.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / w_.K;
    if (tokens == 0) return;

    const size_t blocks = w_.K / kBlock;
    thread_local Buffer codes, phased, steps, sums;
    Activations q;
    q.parts = w_.Parts();
    q.even_odd = codes.Get<int8_t>(tokens * q.parts * w_.K);
    if (w_.bits > 4 && tokens == 1) q.phased = phased.Get<int8_t>(q.parts * w_.K);
    q.step = steps.Get<float>(tokens * blocks);
    q.sum = sums.Get<float>(tokens * blocks);
    if (tokens == 1) {
      One(context, x.As<float>(), q, y);
    } else {
      Many(context, x.As<float>(), tokens, q, y);
    }
  }

 private:
  void One(Context& context, const float* x, const Activations& q, float* y) const {
    const Kernels& kernels = BestKernels();
    kernels.quantize(x, w_.K, 0, q);
    // Long runs for the memory, a task for every thread, and more tasks where there are many outputs.
    constexpr size_t kStep = 64, kMost = 1024;
    const size_t even = (w_.N + ThreadCount::Estimate() - 1) / ThreadCount::Estimate();
    const size_t width = std::min(kMost, (even + kStep - 1) / kStep * kStep);
    context.ParallelFor((w_.N + width - 1) / width, [&](size_t task) {
      kernels.row_block_major(w_, q, task * width, std::min(w_.N, (task + 1) * width), y);
    });
  }

  void Many(Context& context, const float* x, size_t tokens, const Activations& q, float* y) const {
    const Kernels& kernels = BestKernels();
    constexpr size_t kRows = 16;
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) kernels.quantize(x + t * w_.K, w_.K, t, q);
    });
    const size_t groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
    context.ParallelFor((w_.N + kTile - 1) / kTile * groups, [&](size_t task) {
      const size_t n = task / groups * kTile, first = task % groups * kTokensAtOnce;
      const size_t count = std::min(kTokensAtOnce, tokens - first), width = std::min(kTile, w_.N - n);
      alignas(64) float sums[kTokensAtOnce * kTile];
      kernels.tile_block_major(w_, q, first, count, n, sums);
      for (size_t t = 0; t < count; ++t) std::copy_n(sums + t * kTile, width, y + (first + t) * w_.N + n);
    });
  }

  Nested w_;
};

}  // namespace

const OrtCustomOp* NestedMatMulOp() { return Define<NestedMatMul>(); }

}  // namespace sol
