// PrunedMatMul(x, keep, base, scale, zero[, plane1[, plane2]]) -> y: the `keep` largest channels of x [..., K] times a channel-major
// matrix.

#include <algorithm>
#include <array>

#include "../op.h"
#include "run.h"
#include "weights_input.h"

namespace sol {
namespace {

class PrunedMatMul {
 public:
  static constexpr const char* kName = "PrunedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 2>{{{"x", kFloat}, {"keep", kInt64}}}, kMatrixInputs<kUInt4>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMatMul(const Attributes& attributes) : matrix_(ReadMatrix(attributes)), keep_(attributes, kName, 1, "keep") {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const cuda::Weights w = matrix_.Read(context);
    ExpectChannels(kName, x, static_cast<size_t>(w.K));
    const cuda::Keep keep{keep_.Where(context)};
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
                    [&] { cuda::QuantizeAndMultiply(run.Queue(), w, source, keep, rows, codes, nullptr, nullptr, y); });
  }

 private:
  static cuda::MatrixInput ReadMatrix(const Attributes& attributes) {
    const MatrixSize size = PrunedMatrixSize(attributes, kName);
    return cuda::MatrixInput(attributes, kName, {2, 3, 4, 5, 6}, true, size.K, size.N, size.bits);
  }

  cuda::MatrixInput matrix_;
  CountInput keep_;
};

}  // namespace

const OrtCustomOp* PrunedMatMulOp() { return Define<PrunedMatMul>(); }

}  // namespace sol
