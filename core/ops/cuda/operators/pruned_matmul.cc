// PrunedMatMul(x, active, base, scale, zero[, plane1[, plane2]]) -> y: the `active` largest channels of x [..., K] times a channel-major
// matrix.

#include <array>

#include "common/onnx/op.h"
#include "cuda/onnx/weights_input.h"
#include "cuda/operators/product.h"

namespace sol {
namespace {

class PrunedMatMul {
 public:
  static constexpr const char* kName = "PrunedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 2>{{{"x", kFloat}, {"active", kInt64}}}, kLayerMatrixInputs);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMatMul(const Attributes& attributes) : matrix_(ReadMatrix(attributes)), active_(attributes, kName, 1, "active") {}

  void Compute(Context& context) const { cuda::MultiplyInput(context, kName, matrix_.Read(context), {active_.Where(context)}); }

 private:
  static cuda::MatrixInput ReadMatrix(const Attributes& attributes) {
    const MatrixSize size = PrunedMatrixSize(attributes, kName);
    return cuda::MatrixInput(attributes, kName, {2, 3, 4, 5, 6}, true, size.K, size.N, size.bits);
  }

  cuda::MatrixInput matrix_;
  CountInput active_;
};

}  // namespace

const OrtCustomOp* PrunedMatMulOp() { return Define<PrunedMatMul>(); }

}  // namespace sol
