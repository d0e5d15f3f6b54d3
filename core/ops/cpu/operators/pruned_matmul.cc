// PrunedMatMul(x, active, base, scale, zero[, plane1[, plane2]]) -> y: the `active` largest channels of x [..., K] times a channel-major
// matrix. At 3 bits its inputs are x, active, low, high, block_scale, output_scale, codebook.

#include <array>

#include "common/onnx/op.h"
#include "cpu/matmul/channel_matmul.h"
#include "cpu/matmul/weights_input.h"
#include "cpu/threads/team_members.h"

namespace sol {
namespace {

class PrunedMatMul {
 public:
  static constexpr const char* kName = "PrunedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 2>{{{"x", kFloat}, {"active", kInt64}}}, kLayerMatrixInputs);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMatMul(const Attributes& attributes) : product_(Read(attributes)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const size_t K = product_.Inputs();
    ExpectChannels(kName, x, K);
    const size_t active = product_.ReadActive(context);
    auto shape = x.dims;
    shape[x.rank - 1] = static_cast<int64_t>(product_.Outputs());
    float* y = context.Output<float>(0, shape.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / K;
    if (tokens == 0) return;
    if (tokens == 1) {
      One(context, x.As<float>(), active, y);
    } else {
      product_.Rows(context, x.As<float>(), tokens, active, nullptr, y);
    }
  }

 private:
  static ChannelMatMul Read(const Attributes& attributes) {
    const MatrixSize size = PrunedMatrixSize(attributes, kName);
    const Nested w = ReadNested(attributes, kName, {2, 3, 4, 5, 6}, true, size.K, size.N, size.bits);
    return ChannelMatMul(attributes, kName, 1, "active", w, nullptr, {2, 2048});
  }

  void One(const Context& context, const float* x, size_t active, float* y) const {
    thread_local Buffer memory;
    TokenInput input;
    float* sums = nullptr;
    Place(memory, [&](Arena& arena) {
      input = product_.PlaceInput(arena);
      sums = product_.PlaceSums(arena);
    });
    input.Quantize(x, active);
    const size_t members = TeamMembers(), tasks = product_.Tasks(members);
    const auto copy = product_.Copy(context, active);
    RunTasks(context, members, tasks, [&](size_t task) { product_.Product(input, copy.get(), task, tasks, sums); });
    product_.Total(sums, nullptr, y);
  }

  ChannelMatMul product_;
};

}  // namespace

const OrtCustomOp* PrunedMatMulOp() { return Define<PrunedMatMul>(); }

}  // namespace sol
