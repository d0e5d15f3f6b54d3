// PrunedMLP: the MLP of a layer as an operator of its own.

#include <array>

#include "common/inputs/nested_inputs.h"
#include "common/onnx/op.h"
#include "cpu/layer/mlp.h"

namespace sol {
namespace {

class PrunedMLP {
 public:
  static constexpr const char* kName = "PrunedMLP";
  static constexpr auto kInputs = kMlpInputs;
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMLP(const Attributes& attributes) : mlp_(Read(attributes)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const size_t K = mlp_.Channels();
    ExpectChannels(kName, x, K);
    const Mlp::Keep keep = mlp_.ReadKeep(context);
    float* y = context.Output<float>(0, x.dims.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / K;
    if (tokens == 1) {
      One(context, x.As<float>(), keep, y);
    } else {
      mlp_.Rows(context, x.As<float>(), tokens, keep, nullptr, y);
    }
  }

 private:
  static Mlp Read(const Attributes& attributes) {
    const int64_t K = Channels(attributes, kName, "K"), I = Channels(attributes, kName, "I");
    const int64_t U = attributes.Int("gated", 0, 1) != 0 ? 2 * I : I;
    const bool has_bias = attributes.Int("has_bias", 0, 1) != 0;
    const MlpPorts ports = PortsOfMlp(attributes, kName);
    const Nested up = ReadNested(attributes, "PrunedMLP up", ports.up, true, K, U, ports.up_bits);
    const Nested down = ReadNested(attributes, "PrunedMLP down", ports.down, true, I, K, ports.down_bits);
    const float* up_bias = has_bias ? ReadVector(attributes, kName, ports.biases, "up_bias", U) : nullptr;
    const float* down_bias = has_bias ? ReadVector(attributes, kName, ports.biases + 1, "down_bias", K) : nullptr;
    return Mlp(attributes, kName, 1, up, up_bias, down, down_bias);
  }

  void One(const Context& context, const float* x, Mlp::Keep keep, float* y) const {
    thread_local Buffer memory;
    const size_t members = ThreadCount::Estimate();
    Mlp::Shared shared{};
    Mlp::Own* own = nullptr;
    Place(memory, [&](Arena& arena) {
      shared = mlp_.PlaceShared(arena);
      own = arena.Each(members, [&] { return mlp_.PlaceOwn(arena); });
    });
    RunTeam(context, members, [&](Member& member) {
      mlp_.Step(member, members, shared, own[member.Index()], keep, [x] { return x; },
                [] { return static_cast<const float*>(nullptr); }, y);
    });
  }

  Mlp mlp_;
};

}  // namespace

const OrtCustomOp* PrunedMLPOp() { return Define<PrunedMLP>(); }

}  // namespace sol
