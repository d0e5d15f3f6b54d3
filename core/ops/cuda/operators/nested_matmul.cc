// NestedMatMul(x, base, scale, zero[, plane1[, plane2]]) -> y: x [..., K] times a block-major matrix.

#include <array>

#include "common/onnx/op.h"
#include "cuda/onnx/weights_input.h"
#include "cuda/operators/product.h"

namespace sol {
namespace {

class NestedMatMul {
 public:
  static constexpr const char* kName = "NestedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 1>{{{"x", kFloat}}}, kMatrixInputs<kUInt8>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedMatMul(const Attributes& attributes) : matrix_(cuda::OnlyMatrix(attributes, kName)) {}

  void Compute(Context& context) const { cuda::MultiplyInput(context, kName, matrix_.Read(context), {}); }

 private:
  cuda::MatrixInput matrix_;
};

}  // namespace

const OrtCustomOp* NestedMatMulOp() { return Define<NestedMatMul>(); }

}  // namespace sol
