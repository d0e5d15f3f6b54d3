// PrunedMatMul(x, keep, base, scale, zero[, plane1[, plane2]]) -> y: the `keep` largest channels of x [..., K] times a channel-major
// matrix.

#include <array>

#include "common/inputs/nested_inputs.h"
#include "common/onnx/op.h"
#include "cpu/matmul/channel_matmul.h"

namespace sol {
namespace {

class PrunedMatMul {
 public:
  static constexpr const char* kName = "PrunedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 2>{{{"x", kFloat}, {"keep", kInt64}}}, kMatrixInputs<kUInt4>);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMatMul(const Attributes& attributes) : product_(Read(attributes)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const size_t K = product_.Inputs();
    ExpectChannels(kName, x, K);
    const size_t keep = product_.ReadKeep(context);
    auto shape = x.dims;
    shape[x.rank - 1] = static_cast<int64_t>(product_.Outputs());
    float* y = context.Output<float>(0, shape.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / K;
    if (tokens == 0) return;
    if (tokens == 1) {
      One(context, x.As<float>(), keep, y);
    } else {
      product_.Rows(context, x.As<float>(), tokens, keep, nullptr, y);
    }
  }

 private:
  static ChannelMatMul Read(const Attributes& attributes) {
    const MatrixSize size = PrunedMatrixSize(attributes, kName);
    const Nested w = ReadNested(attributes, kName, {2, 3, 4, 5, 6}, true, size.K, size.N, size.bits);
    return ChannelMatMul(attributes, kName, 1, "keep", w, nullptr, {2, 2048});
  }

  void One(const Context& context, const float* x, size_t keep, float* y) const {
    thread_local Buffer memory;
    TokenInput input;
    float* sums = nullptr;
    Place(memory, [&](Arena& arena) {
      input = product_.PlaceInput(arena);
      sums = product_.PlaceSums(arena);
    });
    input.Read(x, keep);
    const size_t tasks = product_.Tasks(ThreadCount::Estimate());
    context.ParallelFor(tasks, [&](size_t task) { product_.Row(input, task, tasks, sums); });
    product_.Total(sums, nullptr, y);
  }

  ChannelMatMul product_;
};

}  // namespace

const OrtCustomOp* PrunedMatMulOp() { return Define<PrunedMatMul>(); }

}  // namespace sol
