// NestedGather(ids, base, scale, zero[, plane1[, plane2]]) -> y: rows of an embedding whose outputs are the vocabulary. The ids lie on the
// device: of one that is none, the row is not a number.

#include <array>
#include <cstdint>
#include <string>

#include "common/onnx/op.h"
#include "cuda/onnx/run.h"
#include "cuda/onnx/weights_input.h"

namespace sol {
namespace {

class NestedGather {
 public:
  static constexpr const char* kName = "NestedGather";
  static constexpr auto kInputs = Join(std::array<Port, 1>{{{"ids", kInt64}}}, kMatrixInputs<kUInt8>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedGather(const Attributes& attributes) : matrix_(cuda::OnlyMatrix(attributes, kName)) {}

  void Compute(Context& context) const {
    const Tensor ids = context.Input(0);
    if (ids.rank >= Tensor::kMaxRank) throw Error(std::string(kName) + ": input ids: got shape " + ids.Shape() + ", expected [1, S]");
    const cuda::Weights w = matrix_.Read(context);
    auto shape = ids.dims;
    shape[ids.rank] = w.K;
    float* y = context.Output<float>(0, shape.data(), ids.rank + 1);
    if (ids.Elements() == 0) return;
    if (ids.Elements() > INT32_MAX) {
      throw Error(std::string(kName) + ": input ids: got " + std::to_string(ids.Elements()) + " tokens, expected at most " +
                  std::to_string(INT32_MAX));
    }
    cuda::Gather(cuda::Run(context, kName).Queue(), w, ids.As<int64_t>(), ids.Elements(), y);
  }

 private:
  cuda::MatrixInput matrix_;
};

}  // namespace

const OrtCustomOp* NestedGatherOp() { return Define<NestedGather>(); }

}  // namespace sol
