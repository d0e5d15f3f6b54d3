// PrunedMLP: the MLP of a layer as an operator of its own.

#include <array>

#include "common/onnx/op.h"
#include "cuda/layer/mlp.h"
#include "cuda/onnx/run.h"
#include "cuda/onnx/weights_input.h"

namespace sol {
namespace {

class PrunedMLP {
 public:
  static constexpr const char* kName = "PrunedMLP";
  static constexpr auto kInputs = kMlpInputs;
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMLP(const Attributes& attributes) : mlp_(ReadMlp(attributes)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    ExpectChannels(kName, x, static_cast<size_t>(mlp_.Channels()));
    float* y = context.Output<float>(0, x.dims.data(), x.rank);
    const int64_t rows = x.Elements() / mlp_.Channels();
    if (rows == 0) return;
    cuda::Source source;
    source.x = x.As<float>();
    cuda::Mlp::Memory memory;
    const cuda::Run run(context, kName);
    run.WithScratch([&](cuda::Scratch& scratch) { memory = mlp_.Place(rows, scratch); },
                    [&] { mlp_.Launch(run, source, rows, memory, nullptr, y); });
  }

 private:
  static cuda::Mlp ReadMlp(const Attributes& attributes) {
    const int64_t K = Channels(attributes, kName, "K"), I = Channels(attributes, kName, "I");
    const int64_t U = attributes.Int("gated", 0, 1) != 0 ? 2 * I : I;
    const bool has_bias = attributes.Int("has_bias", 0, 1) != 0;
    const MlpPorts ports = PortsOfMlp(attributes, kName);
    const cuda::MatrixInput up(attributes, "PrunedMLP up", ports.up, true, K, U, ports.up_bits);
    const cuda::MatrixInput down(attributes, "PrunedMLP down", ports.down, true, I, K, ports.down_bits);
    cuda::WeightInput up_bias, down_bias;
    if (has_bias) {
      up_bias = cuda::WeightInput(attributes, kName, static_cast<size_t>(ports.biases), "up_bias", kFloat, {U});
      down_bias = cuda::WeightInput(attributes, kName, static_cast<size_t>(ports.biases + 1), "down_bias", kFloat, {K});
    }
    return cuda::Mlp(attributes, kName, 1, up, up_bias, down, down_bias);
  }

  cuda::Mlp mlp_;
};

}  // namespace

const OrtCustomOp* PrunedMLPOp() { return Define<PrunedMLP>(); }

}  // namespace sol
