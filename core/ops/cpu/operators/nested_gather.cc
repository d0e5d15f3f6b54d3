// NestedGather(ids, base, scale, zero[, plane1[, plane2]]) -> y: rows of an embedding whose outputs are the vocabulary.

#include <hwy/base.h>

#include <algorithm>
#include <array>
#include <string>

#include "common/onnx/op.h"
#include "cpu/matmul/weights_input.h"
#include "cpu/simd/prefetch.h"

namespace sol {
namespace {

class NestedGather {
 public:
  static constexpr const char* kName = "NestedGather";
  static constexpr auto kInputs = Join(std::array<Port, 1>{{{"ids", kInt64}}}, kMatrixInputs<kUInt8>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedGather(const Attributes& attributes) {
    w_ = ReadOnlyMatrix(attributes, kName);
  }

  void Compute(Context& context) const {
    const Tensor ids = context.Input(0);
    if (ids.rank >= Tensor::kMaxRank) {
      throw Error(std::string(kName) + ": input ids: got shape " + ids.Shape() + ", expected [1, S]");
    }
    const int64_t* id = ids.As<int64_t>();
    const size_t tokens = static_cast<size_t>(ids.Elements());
    for (size_t t = 0; t < tokens; ++t) {
      if (id[t] < 0 || id[t] >= static_cast<int64_t>(w_.N)) {
        throw Error(std::string(kName) + ": input ids: got token id " + std::to_string(id[t]) + ", expected 0 to " +
                    std::to_string(w_.N - 1));
      }
    }
    auto shape = ids.dims;
    shape[ids.rank] = static_cast<int64_t>(w_.K);
    float* y = context.Output<float>(0, shape.data(), ids.rank + 1);
    for (size_t t = 0; t < std::min<size_t>(tokens, 4); ++t) Prefetch(static_cast<size_t>(id[t]));
    constexpr size_t kRows = 16;
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
        Row(static_cast<size_t>(id[t]), y + t * w_.K);
      }
    });
  }

 private:
  // Asks for all blocks of W[:, n] at once: each lies elsewhere.
  void Prefetch(size_t n) const {
    for (size_t b = 0; b < w_.K / kBlock; ++b) {
      const size_t at = b * w_.N + n;
      PrefetchLine(w_.base + at * 16);
      PrefetchLine(w_.scale + at);
      PrefetchLine(w_.zero + at);
      if (w_.plane1 != nullptr) PrefetchLine(w_.plane1 + at * 8);
      if (w_.plane2 != nullptr) PrefetchLine(w_.plane2 + at * 8);
    }
  }

  // W[:, n] in full.
  void Row(size_t n, float* y) const {
    for (size_t b = 0; b < w_.K / kBlock; ++b) {
      const size_t at = b * w_.N + n;
      const float scale = hwy::F32FromF16(hwy::float16_t::FromBits(w_.scale[at])) / 16.0f;
      const float zero = static_cast<float>(w_.zero[at]) + w_.Center();
      for (size_t k = 0; k < kBlock; ++k) {
        const int shift = static_cast<int>(k % 4 * 2);
        int code = (w_.base[at * 16 + k / 2] >> (k % 2 * 4) & 15) << 4;
        if (w_.plane1 != nullptr) code |= (w_.plane1[at * 8 + k / 4] >> shift & 3) << 2;
        if (w_.plane2 != nullptr) code |= w_.plane2[at * 8 + k / 4] >> shift & 3;
        y[b * kBlock + k] = scale * (static_cast<float>(code) - zero);
      }
    }
  }

  Nested w_;
};

}  // namespace

const OrtCustomOp* NestedGatherOp() { return Define<NestedGather>(); }

}  // namespace sol
