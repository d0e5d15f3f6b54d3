// PrunedMLP: the MLP of a layer as an operator of its own.

#include <array>

#include "common/onnx/op.h"
#include "cpu/layer/mlp.h"
#include "cpu/matmul/weights_input.h"
#include "cpu/threads/team_members.h"

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
    const Mlp::ActiveChannels active = mlp_.ReadActive(context);
    float* y = context.Output<float>(0, x.dims.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / K;
    if (tokens == 1) {
      One(context, x.As<float>(), active, y);
    } else {
      mlp_.Rows(context, x.As<float>(), tokens, active, nullptr, y);
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

  // Memory of one member.
  struct Scratch {
    TokenInput up_input, down_input;
  };

  void One(const Context& context, const float* x, Mlp::ActiveChannels active, float* y) const {
    thread_local Buffer memory;
    const size_t members = TeamMembers();
    float *up_sums = nullptr, *hidden = nullptr, *down_sums = nullptr;
    Scratch* scratch = nullptr;
    Place(memory, [&](Arena& arena) {
      up_sums = mlp_.Up().PlaceSums(arena);
      hidden = arena.Take<float>(mlp_.Inner());
      down_sums = mlp_.Down().PlaceSums(arena);
      scratch = arena.Each(members, [&] { return Scratch{mlp_.Up().PlaceInput(arena), mlp_.Down().PlaceInput(arena)}; });
    });
    const auto up_copy = mlp_.Up().Copy(context, active.up), down_copy = mlp_.Down().Copy(context, active.down);
    RunTeam(context, members, [&](Member& member) {
      Scratch& own = scratch[member.Index()];

      Phase up = member.Enter(mlp_.Up().Tasks(members));
      if (up.HasTask()) own.up_input.Quantize(x, active.up);
      for (; up.HasTask(); up.Next()) mlp_.Up().Product(own.up_input, up_copy.get(), up.Task(), up.Tasks(), up_sums);
      up.End();
      mlp_.Down().Prefetch(member, members, active.down, down_copy.get());
      up.Wait();

      Phase activate = member.Enter(mlp_.ActivateTasks(members));
      for (; activate.HasTask(); activate.Next()) mlp_.Activate(activate.Task(), activate.Tasks(), up_sums, hidden);
      activate.End();
      activate.Wait();

      Phase down = member.Enter(mlp_.Down().Tasks(members));
      if (down.HasTask()) own.down_input.Quantize(hidden, active.down);
      for (; down.HasTask(); down.Next()) mlp_.Down().Product(own.down_input, down_copy.get(), down.Task(), down.Tasks(), down_sums);
      if (down.End()) mlp_.Down().Total(down_sums, nullptr, y);
      member.Leave();
    });
  }

  Mlp mlp_;
};

}  // namespace

const OrtCustomOp* PrunedMLPOp() { return Define<PrunedMLP>(); }

}  // namespace sol
