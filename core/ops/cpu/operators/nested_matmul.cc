// NestedMatMul(x, base, scale, zero[, plane1[, plane2]]) -> y: x [..., K] times a block-major matrix, whole or screened. Where a matrix of 3
// bits screens it, low, high, block_scale, output_scale, codebook follow.

#include <array>
#include <optional>
#include <string>

#include "common/onnx/op.h"
#include "cpu/operators/block_matmul.h"
#include "cpu/matmul/weights_input.h"
#include "cpu/operators/screened_product.h"
#include "cpu/threads/team_members.h"

namespace sol {
namespace {

class NestedMatMul {
 public:
  static constexpr const char* kName = "NestedMatMul";
  static constexpr auto kInputs = Join(std::array<Port, 1>{{{"x", kFloat}}}, kMatrixInputs<kUInt8>, kScreenInputs);
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit NestedMatMul(const Attributes& attributes)
      : NestedMatMul(attributes, ReadOnlyMatrix(attributes, kName, ScreenBits(attributes, kName) == 3 ? PortsAt(3) : 0)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const size_t K = product_.Inputs();
    ExpectChannels(kName, x, K);
    auto shape = x.dims;
    shape[x.rank - 1] = static_cast<int64_t>(product_.Outputs());
    float* y = context.Output<float>(0, shape.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / K;
    if (tokens == 0) return;
    if (screened_) {
      screened_->Compute(context, x.As<float>(), tokens, y);
    } else if (tokens == 1) {
      One(context, x.As<float>(), y);
    } else {
      product_.Rows(context, x.As<float>(), tokens, y);
    }
  }

 private:
  NestedMatMul(const Attributes& attributes, const Nested& w) : product_(w) {
    const size_t candidates = Candidates(attributes, kName, w.bits);
    const Nested screen = ReadScreen(attributes, w);
    if (candidates > 0 && candidates < w.N) screened_.emplace(w, screen, candidates, TailOffset(attributes, kName));
  }

  static Nested ReadScreen(const Attributes& attributes, const Nested& w) {
    if (ScreenBits(attributes, kName) == 3) {
      const int at = 4 + PlanesAt(w.bits);
      ExpectCodeTiles(kName, static_cast<int64_t>(w.N));
      return ReadNested(attributes, kName, {at, 0, 0, 0, 0}, true, static_cast<int64_t>(w.K), ScreenColumns(static_cast<int64_t>(w.N)), 3);
    }
    Nested screen = w;
    screen.bits = 4;
    screen.plane1 = screen.plane2 = nullptr;
    return screen;
  }

  void One(const Context& context, const float* x, float* y) const {
    thread_local Buffer memory;
    TokenInput input;
    Place(memory, [&](Arena& arena) { input = product_.PlaceInput(arena); });
    input.Quantize(x);
    const size_t members = TeamMembers(), tasks = product_.Tasks(members);
    RunTasks(context, members, tasks, [&](size_t task) { product_.Product(input, nullptr, task, tasks, y); });
  }

  BlockMatMul product_;
  std::optional<ScreenedProduct> screened_;
};

}  // namespace

const OrtCustomOp* NestedMatMulOp() { return Define<NestedMatMul>(); }

}  // namespace sol
