// NestedMatMul(x, base, scale, zero[, plane1[, plane2]]) -> y: x [..., K] times a block-major matrix.

#include <algorithm>
#include <array>

#include "../op.h"
#include "run.h"
#include "weights_input.h"

namespace sol {
namespace {

class NestedMatMul {
 public:
  static constexpr const char* kName = "NestedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 1>{{{"x", kFloat}}}, kMatrixInputs<kUInt8>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedMatMul(const Attributes& attributes) : matrix_(cuda::OnlyMatrix(attributes, kName)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const cuda::Weights w = matrix_.Read(context);
    ExpectChannels(kName, x, static_cast<size_t>(w.K));
    auto shape = x.dims;
    shape[x.rank - 1] = w.N;
    float* y = context.Output<float>(0, shape.data(), x.rank);
    const int64_t rows = x.Elements() / w.K;
    if (rows == 0) return;
    cuda::Source source;
    source.x = x.As<float>();
    cuda::Codes codes;
    const cuda::Run run(context, kName);
    run.WithScratch([&](cuda::Scratch& scratch) { codes = cuda::PlaceCodes(w, std::min(rows, cuda::kRowsAtOnce), scratch); },
                    [&] { cuda::QuantizeAndMultiply(run.Queue(), w, source, {}, rows, codes, nullptr, nullptr, y); });
  }

 private:
  cuda::MatrixInput matrix_;
};

}  // namespace

const OrtCustomOp* NestedMatMulOp() { return Define<NestedMatMul>(); }

}  // namespace sol
