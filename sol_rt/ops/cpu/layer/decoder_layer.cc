// DecoderLayer: a whole layer. One token goes through it by one team: threads meet between the phases, not between nodes.

#include <string>

#include "common/inputs/layer_inputs.h"
#include "common/inputs/nested_inputs.h"
#include "common/onnx/op.h"
#include "cpu/attention/attention.h"
#include "cpu/elementwise/norm.h"
#include "cpu/layer/mlp.h"
#include "cpu/matmul/channel_matmul.h"

namespace sol {
namespace {

// Element: of keys and values, kFloat16 or kInt8.
template <Type Element>
class DecoderLayer {
 public:
  static constexpr const char* kName = "DecoderLayer";
  static constexpr bool kInt8Cache = Element == kInt8;
  static constexpr auto kInputs = kDecoderLayerInputs<Element>;
  static constexpr auto kOutputs = kAttentionOutputs<Element>;

  explicit DecoderLayer(const Attributes& attributes) : DecoderLayer(attributes, WeightReader(attributes)) {}

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    const int64_t hidden = static_cast<int64_t>(mlp_.Channels());
    Expect(kName, "x", x, kFloat, {1, -1, hidden});
    if (x.dims[1] < 1) throw Error(std::string(kName) + ": input x: got no token, expected at least 1");
    AttentionCall call = attention_.Begin(context, cos_, sin_, x.dims[1]);
    const Keep keep{qkv_.ReadKeep(context), output_.ReadKeep(context), mlp_.ReadKeep(context)};
    float* y = context.Output<float>(0, {1, call.tokens, hidden});
    if (call.tokens == 1) {
      Step(context, x.As<float>(), call, keep, y);
    } else {
      Rows(context, x.As<float>(), call, keep, y);
    }
  }

 private:
  // One token's products: what is added up of parts is small.
  static constexpr ChannelMatMul::Cut kQkvCut{2, 32768}, kOutputCut{2, 2048};

  // Channels kept at the inputs of the matrices.
  struct Keep {
    size_t qkv, output;
    Mlp::Keep mlp;
  };

  // Reads the weights in the order of the operator's inputs.
  class WeightReader {
   public:
    explicit WeightReader(const Attributes& attributes)
        : attributes_(attributes), port_(kFirstLayerWeight<Element>) {}

    Norm ReadNorm(const char* name, int64_t n, bool has_bias) {
      const float* weight = ReadVector(attributes_, kName, port_++, name, n);
      const float* bias = has_bias ? ReadVector(attributes_, kName, port_++, name, n) : nullptr;
      return Norm(weight, bias, static_cast<size_t>(n), attributes_.Float("epsilon"));
    }
    Nested ReadMatrix(const char* name, const char* bits_name, int64_t K, int64_t N) {
      const int first = port_, bits = BitsOf(attributes_, kName, bits_name);
      port_ += 3 + PlanesAt(bits);
      return ReadNested(attributes_, name, {first, first + 1, first + 2, first + 3, first + 4}, true, K, N, bits);
    }
    const float* ReadBias(const char* name, bool has_bias, int64_t n) {
      return has_bias ? ReadVector(attributes_, kName, port_++, name, n) : nullptr;
    }
    ChannelMatMul ReadMatMul(const char* name, const char* bits_name, const char* bias, size_t keep_port, const char* keep_name,
                             ChannelMatMul::Cut cut, int64_t K, int64_t N) {
      const Nested w = ReadMatrix(name, bits_name, K, N);
      const float* added = ReadBias(bias, attributes_.Int(bias, 0, 1) != 0, N);
      return ChannelMatMul(attributes_, kName, keep_port, keep_name, w, added, cut, LayerIndex(attributes_));
    }
    Mlp ReadMlp(int64_t hidden) {
      const int64_t I = Channels(attributes_, kName, "intermediate_size");
      const int64_t U = attributes_.Int("gated", 0, 1) != 0 ? 2 * I : I;
      const bool has_bias = attributes_.Int("mlp_bias", 0, 1) != 0;
      const Nested up = ReadMatrix("DecoderLayer up", "up_bits", hidden, U);
      const float* up_bias = ReadBias("up_bias", has_bias, U);
      const Nested down = ReadMatrix("DecoderLayer down", "down_bits", I, hidden);
      const float* down_bias = ReadBias("down_bias", has_bias, hidden);
      ExpectInputs(attributes_, kName, static_cast<size_t>(port_) + 1);
      return Mlp(attributes_, kName, 7, up, up_bias, down, down_bias, LayerIndex(attributes_));
    }

   private:
    const Attributes& attributes_;
    int port_;
  };

  // Members are read in their order below, which is that of the inputs.
  DecoderLayer(const Attributes& attributes, WeightReader&& weights)
      : attention_(attributes, kName, kInt8Cache, kLayerScalePort, LayerIndex(attributes)),
        cos_(attributes.Constant(11, "cos")),
        sin_(attributes.Constant(12, "sin")),
        hidden_(Channels(attributes, kName, "hidden_size")),
        parallel_residual_(attributes.Int("parallel_residual", 0, 1) != 0),
        attention_norm_(weights.ReadNorm("attention_norm", hidden_, HasLayerNorm(attributes, kName))),
        mlp_norm_(attributes.Int("shared_norm", 0, 1) != 0 ? attention_norm_
                                                           : weights.ReadNorm("mlp_norm", hidden_, HasLayerNorm(attributes, kName))),
        qkv_(weights.ReadMatMul("DecoderLayer qkv", "qkv_bits", "qkv_bias", 9, "keep_qkv", kQkvCut, hidden_, attention_.QkvSize())),
        output_(weights.ReadMatMul("DecoderLayer o", "o_bits", "output_bias", 10, "keep_o", kOutputCut, attention_.OutputSize(), hidden_)),
        mlp_(weights.ReadMlp(hidden_)) {
    ExpectWholeBlocks(kName, attention_.OutputSize());
  }

  // Scratch memory of a member.
  struct Own {
    float* normed;  // [hidden]
    float* qkv;     // [QkvSize]
    float* middle;  // [hidden], x + attention
    TokenInput qkv_input, output_input;
    DecodePlan attention;
    Mlp::Own mlp;
  };

  void Step(const Context& context, const float* x, const AttentionCall& call, Keep keep, float* y) const {
    thread_local Buffer memory;
    const size_t members = ThreadCount::Estimate(), hidden = static_cast<size_t>(hidden_);
    float *qkv_sums = nullptr, *attended = nullptr, *output_sums = nullptr;
    DecodePlan plan{};
    Mlp::Shared mlp{};
    Own* all = nullptr;
    Place(memory, [&](Arena& arena) {
      qkv_sums = qkv_.PlaceSums(arena);
      attended = arena.Take<float>(output_.Inputs());
      output_sums = output_.PlaceSums(arena);
      plan = attention_.PlanStep(call, arena);
      mlp = mlp_.PlaceShared(arena);
      all = arena.Each(members, [&] {
        return Own{arena.Take<float>(hidden), arena.Take<float>(qkv_.Outputs()), arena.Take<float>(hidden), qkv_.PlaceInput(arena),
                   output_.PlaceInput(arena), attention_.PlanOwn(call, plan, arena), mlp_.PlaceOwn(arena)};
      });
    });
    attention_.StartStep(call, plan);
    const size_t qkv_tasks = qkv_.Tasks(members), output_tasks = output_.Tasks(members);
    RunTeam(context, members, [&](Member& member) {
      Own& own = all[member.Index()];
      AttentionCall mine = call;
      mine.qkv = own.qkv;
      mine.y = attended;
      qkv_.Fetch(member, members, keep.qkv);
      member.Run(
          qkv_tasks,
          [&] {
            attention_norm_.Row(x, own.normed);
            own.qkv_input.Read(own.normed, keep.qkv);
          },
          [&](size_t task) { qkv_.Row(own.qkv_input, task, qkv_tasks, qkv_sums); },
          [&] { attention_.FetchStep(member, members, mine, plan); });
      // Every member adds up what it reads: that is less work than to wait for one that does.
      attention_.Step(
          member, mine, own.attention, [&] { qkv_.Total(qkv_sums, nullptr, own.qkv); },
          [&] { output_.Fetch(member, members, keep.output); });
      member.Run(
          output_tasks, [&] { own.output_input.Read(attended, keep.output); },
          [&](size_t task) { output_.Row(own.output_input, task, output_tasks, output_sums); },
          [&] { mlp_.FetchStep(member, members, keep.mlp); });
      const auto middle = [&] {
        output_.Total(output_sums, x, own.middle);
        return static_cast<const float*>(own.middle);
      };
      const auto normed = [&] {
        mlp_norm_.Row(parallel_residual_ ? x : middle(), own.normed);
        return own.normed;
      };
      mlp_.Step(member, members, mlp, own.mlp, keep.mlp, normed, middle, y);
    });
  }

  void Rows(const Context& context, const float* x, AttentionCall& call, Keep keep, float* y) const {
    thread_local Buffer memory;
    const size_t tokens = static_cast<size_t>(call.tokens), hidden = static_cast<size_t>(hidden_);
    float *normed = nullptr, *qkv = nullptr, *attended = nullptr, *middle = nullptr;
    Place(memory, [&](Arena& arena) {
      normed = arena.Take<float>(tokens * hidden);
      qkv = arena.Take<float>(tokens * qkv_.Outputs());
      attended = arena.Take<float>(tokens * output_.Inputs());
      middle = arena.Take<float>(tokens * hidden);
    });
    attention_norm_.Rows(context, x, tokens, normed);
    qkv_.Rows(context, normed, tokens, keep.qkv, nullptr, qkv);
    call.qkv = qkv;
    call.y = attended;
    attention_.Rows(context, call);
    output_.Rows(context, attended, tokens, keep.output, x, middle);
    mlp_norm_.Rows(context, parallel_residual_ ? x : middle, tokens, normed);
    mlp_.Rows(context, normed, tokens, keep.mlp, middle, y);
  }

  Attention attention_;
  Tensor cos_, sin_;
  int64_t hidden_;
  bool parallel_residual_;
  Norm attention_norm_, mlp_norm_;
  ChannelMatMul qkv_, output_;
  Mlp mlp_;
};

}  // namespace

const OrtCustomOp* DecoderLayerOp() { return Define<DecoderLayer<kFloat16>>(); }
const OrtCustomOp* DecoderLayerInt8Op() { return Define<DecoderLayer<kInt8>>(); }

}  // namespace sol
