// DecoderLayer: a whole layer of a transformer, x [1, S, hidden] -> y [1, S, hidden], with its KV cache.
//
// One token, a decode step, goes through the layer by one team of threads, which meet between the phases. DecoderLayer::RunMember reads as
// the step runs:
//
//   phase      what its tasks compute                        the work of a task
//   qkv        qkv = norm(x) W_qkv; q and k may be normed    cpu/matmul/channel_matmul.h, cpu/layer/qk_norm.h
//   weigh      where few tokens are read: weights of the     cpu/attention/attention.h
//   score      old ones, their scores, and the selection
//   attend     attended = softmax(q k) v                     cpu/attention/attention.h
//   output     middle = x + attended W_o                     cpu/matmul/channel_matmul.h
//   up         u = norm(middle) W_up                         cpu/matmul/channel_matmul.h
//   activate   h = act(u), gated or not                      cpu/layer/mlp.h
//   down       y = middle + h W_down                         cpu/matmul/channel_matmul.h
//
// A layer may have no norm before attention and MLP, and a norm after each of them, before x and middle are added.
//
// From here to the dot product of a matrix product:
//
//   cpu/threads/team.h               phases, and the tasks that a member claims of them
//   cpu/matmul/token_input.h         a token's numbers on their way into a product: the largest channels, codes
//   cpu/matmul/channel_matmul.h      a product: its split into tasks
//   cpu/matmul/matmul_kernels.h      weights and codes as they lie in memory, and the kernels' table
//   cpu/matmul/matmul_kernels.cc     the kernels for this processor
//   cpu/matmul/row-inl.h             a task's product, vector by vector; at 3 bits cpu/codebook/row-inl.h
//   cpu/matmul/dot-inl.h             the integer dot products, and their scales
//
// Many tokens, a prompt, go through Rows, whose parts each use all threads; so do the next tokens of several sessions.

#include <string>

#include "common/inputs/layer_inputs.h"
#include "common/onnx/op.h"
#include "cpu/attention/attention.h"
#include "cpu/elementwise/norm.h"
#include "cpu/layer/mlp.h"
#include "cpu/layer/qk_norm.h"
#include "cpu/matmul/channel_matmul.h"
#include "cpu/matmul/weights_input.h"
#include "cpu/threads/team.h"
#include "cpu/threads/team_members.h"

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
    const ActiveChannels active{qkv_.ReadActive(context), output_.ReadActive(context), mlp_.ReadActive(context)};
    float* y = context.Output<float>(0, {1, call.tokens, hidden});
    if (call.tokens == 1) {
      Step(context, x.As<float>(), call, active, y);
    } else {
      Rows(context, x.As<float>(), call, active, y);
    }
  }

 private:
  // Few splits: what is added up of them is small.
  static constexpr SplitK kQkvSplit{2, 32768}, kOutputSplit{2, 2048};

  // Number of input channels of the matrices that are read.
  struct ActiveChannels {
    size_t qkv, output;
    Mlp::ActiveChannels mlp;
  };

  // Reads the weights in the order of the operator's inputs.
  class WeightReader {
   public:
    explicit WeightReader(const Attributes& attributes)
        : attributes_(attributes), port_(kFirstLayerWeight<Element>) {}

    Norm ReadNorm(const char* name, int64_t n, bool has_bias) {
      const float* weight = ReadVector(attributes_, kName, port_++, name, n);
      const float* bias = has_bias ? ReadVector(attributes_, kName, port_++, name, n) : nullptr;
      return Norm(weight, bias, static_cast<size_t>(n), ReadEpsilon(attributes_, kName));
    }
    // Of a layer that does not have the norm, none.
    Norm ReadNormIf(bool there, const char* name, int64_t n, bool has_bias) { return there ? ReadNorm(name, n, has_bias) : Norm(); }
    QkNorm ReadQkNorm(const Tensor& cos, const Tensor& sin) {
      const QkNormKind kind = sol::ReadQkNorm(attributes_, kName);
      if (kind == QkNormKind::kNone) return QkNorm();
      const QkNorm::Sizes sizes = QkNorm::ReadSizes(attributes_);
      const float* weight = ReadVector(attributes_, kName, port_++, "qk_norm", (sizes.heads + sizes.kv_heads) * sizes.head_dim);
      return QkNorm(kind, sizes, weight, HasLayerNorm(attributes_, kName), ReadEpsilon(attributes_, kName), kName, cos, sin);
    }
    Nested ReadMatrix(const char* name, const char* bits_name, int64_t K, int64_t N) {
      const int first = port_, bits = BitsOf(attributes_, kName, bits_name);
      port_ += PortsAt(bits) + PlanesAt(bits);
      return ReadNested(attributes_, name, {first, first + 1, first + 2, first + 3, first + 4}, true, K, N, bits);
    }
    const float* ReadBias(const char* name, bool has_bias, int64_t n) {
      return has_bias ? ReadVector(attributes_, kName, port_++, name, n) : nullptr;
    }
    ChannelMatMul ReadMatMul(const char* name, const char* bits_name, const char* bias, size_t active_port, const char* active_name,
                             SplitK split, int64_t K, int64_t N) {
      const Nested w = ReadMatrix(name, bits_name, K, N);
      const float* added = ReadBias(bias, attributes_.Int(bias, 0, 1) != 0, N);
      return ChannelMatMul(attributes_, kName, active_port, active_name, w, added, split, LayerIndex(attributes_));
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
        norms_(ReadNormPlace(attributes, kName)),
        attention_norm_(weights.ReadNormIf(norms_.before, "attention_norm", hidden_, HasLayerNorm(attributes, kName))),
        attention_post_norm_(weights.ReadNormIf(norms_.after, "attention_post_norm", hidden_, HasLayerNorm(attributes, kName))),
        mlp_norm_(HasSharedNorm(attributes, kName)
                      ? attention_norm_
                      : weights.ReadNormIf(norms_.before, "mlp_norm", hidden_, HasLayerNorm(attributes, kName))),
        mlp_post_norm_(weights.ReadNormIf(norms_.after, "mlp_post_norm", hidden_, HasLayerNorm(attributes, kName))),
        qk_norm_(weights.ReadQkNorm(cos_, sin_)),
        qkv_(weights.ReadMatMul("DecoderLayer qkv", "qkv_bits", "qkv_bias", 9, "active_qkv", kQkvSplit, hidden_, attention_.QkvSize())),
        output_(weights.ReadMatMul("DecoderLayer o", "o_bits", "output_bias", 10, "active_o", kOutputSplit, attention_.OutputSize(), hidden_)),
        mlp_(weights.ReadMlp(hidden_)) {
    ExpectWholeBlocks(kName, attention_.OutputSize());
  }

  // Data that the members of a step's team share.
  struct Shared {
    size_t members;
    const float* x;      // [hidden]
    AttentionCall call;
    ActiveChannels active;
    // Copies of the matrices that are read in their place, or null.
    const PackedMatrix *qkv_copy, *output_copy, *up_copy, *down_copy;
    float* qkv_sums;     // [splits, QkvSize]
    float* attended;     // [OutputSize], all heads
    float* output_sums;  // [splits, hidden]
    float* up_sums;      // [splits, U]
    float* inner;        // [I], h of the MLP
    float* down_sums;    // [splits, hidden]
    float* y;            // [hidden]
  };

  // Memory of one member.
  struct Scratch {
    float* normed;  // [hidden]
    float* qkv;     // [QkvSize]
    float* middle;  // [hidden], x + attention
    TokenInput qkv_input, output_input, up_input, down_input;
    DecodePlan plan;
  };

  // One token.
  void Step(const Context& context, const float* x, const AttentionCall& call, ActiveChannels active, float* y) const {
    thread_local Buffer memory;
    const size_t members = TeamMembers(), hidden = static_cast<size_t>(hidden_);
    Shared shared{};
    DecodePlan plan{};
    Scratch* scratch = nullptr;
    Place(memory, [&](Arena& arena) {
      shared.qkv_sums = qkv_.PlaceSums(arena);
      shared.attended = arena.Take<float>(output_.Inputs());
      shared.output_sums = output_.PlaceSums(arena);
      plan = attention_.PlanStep(call, arena);
      shared.up_sums = mlp_.Up().PlaceSums(arena);
      shared.inner = arena.Take<float>(mlp_.Inner());
      shared.down_sums = mlp_.Down().PlaceSums(arena);
      scratch = arena.Each(members, [&] {
        return Scratch{arena.Take<float>(hidden), arena.Take<float>(qkv_.Outputs()), arena.Take<float>(hidden),
                       qkv_.PlaceInput(arena), output_.PlaceInput(arena), mlp_.Up().PlaceInput(arena), mlp_.Down().PlaceInput(arena),
                       attention_.PlanMember(call, plan, arena)};
      });
    });
    shared.members = members;
    shared.x = x;
    shared.call = call;
    shared.active = active;
    shared.y = y;
    const auto qkv = qkv_.Copy(context, active.qkv), output = output_.Copy(context, active.output);
    const auto up = mlp_.Up().Copy(context, active.mlp.up), down = mlp_.Down().Copy(context, active.mlp.down);
    shared.qkv_copy = qkv.get();
    shared.output_copy = output.get();
    shared.up_copy = up.get();
    shared.down_copy = down.get();
    attention_.StartStep(call, plan);
    RunTeam(context, members, [&](Member& member) { RunMember(member, shared, scratch[member.Index()]); });
  }

  // One member's way through the step. Vectors that every task of a phase reads are made by each member for itself, before its first task:
  // that is less work than to wait for one member that makes them for all.
  void RunMember(Member& member, const Shared& shared, Scratch& own) const {
    const size_t members = shared.members;
    const ActiveChannels& active = shared.active;
    const DecodePlan& plan = own.plan;
    AttentionCall call = shared.call;
    call.qkv = own.qkv;
    call.y = shared.attended;

    // qkv = norm(x) W_qkv
    qkv_.Prefetch(member, members, active.qkv, shared.qkv_copy);
    Phase qkv = member.Enter(qkv_.Tasks(members));
    if (qkv.HasTask()) {
      if (norms_.before) attention_norm_.Row(shared.x, own.normed);
      own.qkv_input.Quantize(norms_.before ? own.normed : shared.x, active.qkv);
    }
    for (; qkv.HasTask(); qkv.Next()) qkv_.Product(own.qkv_input, shared.qkv_copy, qkv.Task(), qkv.Tasks(), shared.qkv_sums);
    qkv.End();
    attention_.Prefetch(member, members, call, plan);
    qkv.Wait();

    // attended = softmax(q k) v, over all tokens or those selected
    bool has_queries = false;
    if (plan.sparse) {
      Phase weigh = member.Enter(attention_.ScoreTasks(call, plan));
      if (weigh.HasTask()) {
        ReadQueries(shared, call, own);
        has_queries = true;
      }
      for (; weigh.HasTask(); weigh.Next()) attention_.Weigh(call, plan, weigh.Task());
      weigh.End();
      weigh.Wait();

      Phase score = member.Enter(attention_.ScoreTasks(call, plan));
      for (; score.HasTask(); score.Next()) attention_.Score(call, plan, score.Task());
      score.End();
      score.Wait();
    }
    Phase attend = member.Enter(attention_.ChunkTasks(call, plan));
    if (attend.HasTask() && !has_queries) ReadQueries(shared, call, own);
    for (; attend.HasTask(); attend.Next()) attention_.Attend(call, plan, attend.Task());
    attend.End();
    output_.Prefetch(member, members, active.output, shared.output_copy);
    attend.Wait();

    // middle = x + attended W_o; its sums are added up where it is read
    Phase output = member.Enter(output_.Tasks(members));
    if (output.HasTask()) own.output_input.Quantize(shared.attended, active.output);
    for (; output.HasTask(); output.Next()) output_.Product(own.output_input, shared.output_copy, output.Task(), output.Tasks(), shared.output_sums);
    output.End();
    mlp_.Up().Prefetch(member, members, active.mlp.up, shared.up_copy);
    output.Wait();

    // u = norm(middle) W_up
    Phase up = member.Enter(mlp_.Up().Tasks(members));
    if (up.HasTask()) {
      if (!parallel_residual_) AddAttention(shared, own);
      if (norms_.before) mlp_norm_.Row(parallel_residual_ ? shared.x : own.middle, own.normed);
      own.up_input.Quantize(norms_.before ? own.normed : own.middle, active.mlp.up);
    }
    for (; up.HasTask(); up.Next()) mlp_.Up().Product(own.up_input, shared.up_copy, up.Task(), up.Tasks(), shared.up_sums);
    up.End();
    mlp_.Down().Prefetch(member, members, active.mlp.down, shared.down_copy);
    up.Wait();

    // h = act(u)
    Phase activate = member.Enter(mlp_.ActivateTasks(members));
    for (; activate.HasTask(); activate.Next()) mlp_.Activate(activate.Task(), activate.Tasks(), shared.up_sums, shared.inner);
    activate.End();
    activate.Wait();

    // y = middle + h W_down
    Phase down = member.Enter(mlp_.Down().Tasks(members));
    if (down.HasTask()) own.down_input.Quantize(shared.inner, active.mlp.down);
    for (; down.HasTask(); down.Next()) mlp_.Down().Product(own.down_input, shared.down_copy, down.Task(), down.Tasks(), shared.down_sums);
    if (down.End()) {
      AddAttention(shared, own);
      AddNormed(mlp_.Down(), mlp_post_norm_, shared.down_sums, own.middle, own.normed, shared.y);
    }
    member.Leave();
  }

  // middle = x + what attention gives, which may be normed.
  void AddAttention(const Shared& shared, Scratch& own) const {
    AddNormed(output_, attention_post_norm_, shared.output_sums, shared.x, own.normed, own.middle);
  }

  // y = residual + what a product's sums give, which may be normed. `scratch` is [hidden].
  void AddNormed(const ChannelMatMul& product, const Norm& norm, float* sums, const float* residual, float* scratch, float* y) const {
    if (!norms_.after) {
      product.Total(sums, residual, y);
      return;
    }
    product.Total(sums, nullptr, scratch);
    norm.Row(scratch, scratch);
    for (int64_t i = 0; i < hidden_; ++i) y[i] = residual[i] + scratch[i];
  }

  // Adds up a member's own q, k and v, norms them where the layer does, and rotates its queries.
  void ReadQueries(const Shared& shared, const AttentionCall& call, Scratch& own) const {
    qkv_.Total(shared.qkv_sums, nullptr, own.qkv);
    if (qk_norm_) qk_norm_.Row(call.base + call.past, own.qkv);
    attention_.PrepareQueries(call, own.plan);
  }

  // Many tokens.
  void Rows(const Context& context, const float* x, AttentionCall& call, ActiveChannels active, float* y) const {
    thread_local Buffer memory;
    const size_t tokens = static_cast<size_t>(call.tokens), hidden = static_cast<size_t>(hidden_);
    float *normed = nullptr, *qkv = nullptr, *attended = nullptr, *middle = nullptr;
    Place(memory, [&](Arena& arena) {
      normed = arena.Take<float>(tokens * hidden);
      qkv = arena.Take<float>(tokens * qkv_.Outputs());
      attended = arena.Take<float>(tokens * output_.Inputs());
      middle = arena.Take<float>(tokens * hidden);
    });
    if (norms_.before) attention_norm_.Rows(context, x, tokens, normed);
    qkv_.Rows(context, norms_.before ? normed : x, tokens, active.qkv, nullptr, qkv);
    if (qk_norm_) qk_norm_.Rows(context, [&](size_t token) { return call.Position(static_cast<int64_t>(token)); }, tokens, qkv);
    call.qkv = qkv;
    call.y = attended;
    attention_.Rows(context, call);
    output_.Rows(context, attended, tokens, active.output, norms_.after ? nullptr : x, middle);
    if (norms_.after) attention_post_norm_.AddRows(context, middle, x, tokens, middle);
    if (norms_.before) mlp_norm_.Rows(context, parallel_residual_ ? x : middle, tokens, normed);
    mlp_.Rows(context, norms_.before ? normed : middle, tokens, active.mlp, norms_.after ? nullptr : middle, y);
    if (norms_.after) mlp_post_norm_.AddRows(context, y, middle, tokens, y);
  }

  Attention attention_;
  Tensor cos_, sin_;
  int64_t hidden_;
  bool parallel_residual_;
  NormPlace norms_;
  Norm attention_norm_, attention_post_norm_, mlp_norm_, mlp_post_norm_;
  QkNorm qk_norm_;
  ChannelMatMul qkv_, output_;
  Mlp mlp_;
};

}  // namespace

const OrtCustomOp* DecoderLayerOp() { return Define<DecoderLayer<kFloat16>>(); }
const OrtCustomOp* DecoderLayerInt8Op() { return Define<DecoderLayer<kInt8>>(); }

}  // namespace sol
