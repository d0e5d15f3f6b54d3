// DecoderLayer: a whole layer of a transformer, x [1, S, hidden] -> y [1, S, hidden], with its KV cache, as a sequence of launches:
//
//   qkv = norm(x) W_qkv            cuda/matmul/quantize.cu, then matmul_row.cu for one token or matmul_rows.cu for more
//   norm of q and k                cuda/layer/norms.cu, in layers that have it
//   attended = softmax(q k) v      cuda/attention/attention.cu
//   middle = x + attended W_o      as qkv
//   y = middle + MLP(norm(middle)) cuda/layer/mlp.h
//
// A layer may have no norm before attention and MLP, and a norm after each of them, before x and middle are added.

#include <algorithm>
#include <string>

#include "common/inputs/layer_inputs.h"
#include "common/onnx/op.h"
#include "cuda/attention/attention_op.h"
#include "cuda/layer/mlp.h"
#include "cuda/layer/norms.h"
#include "cuda/onnx/run.h"
#include "cuda/onnx/weights_input.h"

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
    Expect(kName, "x", x, kFloat, {1, -1, hidden_});
    const int64_t tokens = x.dims[1];
    if (tokens < 1) throw Error(std::string(kName) + ": input x: got no token, expected at least 1");
    if (rotary_before_norm_ > 0) {
      Expect(kName, "cos", context.Input(11), kFloat, {-1, rotary_before_norm_ / 2});
      Expect(kName, "sin", context.Input(12), kFloat, {context.Input(11).dims[0], rotary_before_norm_ / 2});
    }
    const cuda::Run run(context, kName);
    cuda::AttentionCall call = attention_.Begin(run, context.Input(11), context.Input(12), tokens);
    float* y = context.Output<float>(0, {1, tokens, hidden_});

    const int64_t most = std::min(tokens, cuda::kRowsAtOnce);
    const auto count = static_cast<size_t>(tokens);
    cuda::Codes qkv_codes, output_codes;
    cuda::AttentionScratch attention;
    cuda::Mlp::Memory mlp;
    float *qkv = nullptr, *attended = nullptr, *middle = nullptr;
    const auto place = [&](cuda::Scratch& scratch) {
      qkv_codes = cuda::PlaceCodes(qkv_.matrix.Shape(), most, scratch);
      qkv = scratch.Take<float>(count * static_cast<size_t>(attention_.QkvSize()));
      attention = cuda::PlaceAttention(call, scratch);
      attended = scratch.Take<float>(count * static_cast<size_t>(attention_.OutputSize()));
      output_codes = cuda::PlaceCodes(output_.matrix.Shape(), most, scratch);
      middle = scratch.Take<float>(count * static_cast<size_t>(hidden_));
      mlp = mlp_.Place(tokens, scratch);
    };
    run.WithScratch(place, [&] {
      const cuda::Source normed = norms_.before ? attention_norm_.Of(context, x.As<float>()) : Plain(x.As<float>());
      qkv_.Launch(run, normed, tokens, qkv_codes, nullptr, qkv);
      if (qk_norm_ != QkNormKind::kNone) {
        cuda::QkNormCall norm = QkNormOf(context, call);
        norm.qkv = qkv;
        norm.tokens = tokens;
        cuda::NormQk(run.Queue(), norm);
      }
      call.qkv = qkv;
      call.y = attended;
      cuda::Attend(run.Queue(), call, attention);
      output_.Launch(run, Plain(attended), tokens, output_codes, norms_.after ? nullptr : x.As<float>(), middle);
      if (norms_.after) cuda::AddNormed(run.Queue(), attention_post_norm_.Of(context, middle), x.As<float>(), tokens, hidden_, middle);
      cuda::Source into_mlp = normed;
      if (!norms_.before) {
        into_mlp = Plain(middle);
      } else if (!shared_norm_) {
        into_mlp = mlp_norm_.Of(context, parallel_residual_ ? x.As<float>() : middle);
      }
      mlp_.Launch(run, into_mlp, tokens, mlp, norms_.after ? nullptr : middle, y);
      if (norms_.after) cuda::AddNormed(run.Queue(), mlp_post_norm_.Of(context, y), middle, tokens, hidden_, y);
    });
  }

 private:
  static cuda::Source Plain(const float* x) {
    cuda::Source plain;
    plain.x = x;
    return plain;
  }

  // The norm of q and k, without what it works on.
  cuda::QkNormCall QkNormOf(const Context& context, const cuda::AttentionCall& attention) const {
    cuda::QkNormCall norm;
    norm.weight = qk_norm_weight_.Read<float>(context);
    norm.heads = attention.heads;
    norm.kv_heads = attention.kv_heads;
    norm.head_dim = attention.head_dim;
    norm.by_row = qk_norm_ == QkNormKind::kRow;
    norm.layer_norm = layer_norm_;
    norm.epsilon = epsilon_;
    norm.rotary_dim = static_cast<int>(rotary_before_norm_);
    norm.table_rows = attention.table_rows;
    norm.cos = attention.cos;
    norm.sin = attention.sin;
    norm.past_length = attention.past_length;
    return norm;
  }

  // A norm's weight, and of a layer norm its bias.
  struct Norm {
    cuda::WeightInput weight, bias;
    float epsilon = 0;

    cuda::Source Of(const Context& context, const float* x) const {
      cuda::Source source;
      source.kind = bias ? cuda::Source::kLayerNorm : cuda::Source::kRmsNorm;
      source.x = x;
      source.weight = weight.Read<float>(context);
      source.bias = bias.Read<float>(context);
      source.epsilon = epsilon;
      return source;
    }
  };

  // A matrix with its bias and how many of its input channels are read.
  struct Projection {
    cuda::MatrixInput matrix;
    cuda::WeightInput bias;
    CountInput active;

    void Launch(const cuda::Run& run, const cuda::Source& source, int64_t rows, const cuda::Codes& codes, const float* residual, float* y) const {
      const Context& context = run.Inputs();
      cuda::QuantizeAndMultiply(run.Queue(), matrix.Read(context), source, {active.Where(context)}, rows, codes, bias.Read<float>(context), residual,
                                y);
    }
  };

  // Reads the weights in the order of the operator's inputs.
  class WeightReader {
   public:
    explicit WeightReader(const Attributes& attributes)
        : attributes_(attributes), port_(static_cast<int>(kFirstLayerWeight<Element>)) {}

    Norm ReadNorm(const char* name, int64_t n, bool has_bias) {
      Norm norm;
      norm.weight = Vector(name, n);
      if (has_bias) norm.bias = Vector(name, n);
      norm.epsilon = ReadEpsilon(attributes_, kName);
      return norm;
    }
    // Of a layer that does not have the norm, none.
    Norm ReadNormIf(bool there, const char* name, int64_t n, bool has_bias) { return there ? ReadNorm(name, n, has_bias) : Norm(); }
    cuda::WeightInput ReadQkNorm(QkNormKind kind) {
      const int64_t heads = attributes_.Int("num_heads") + attributes_.Int("kv_heads");
      return kind == QkNormKind::kNone ? cuda::WeightInput() : Vector("qk_norm", heads * attributes_.Int("head_dim"));
    }
    Projection ReadProjection(const char* name, const char* bits_name, const char* bias, size_t active_port, const char* active_name, int64_t K,
                              int64_t N) {
      const cuda::MatrixInput matrix = Matrix(name, bits_name, K, N);
      cuda::WeightInput added;
      if (attributes_.Int(bias, 0, 1) != 0) added = Vector(bias, N);
      return {matrix, added, CountInput(attributes_, kName, active_port, active_name, LayerIndex(attributes_))};
    }
    cuda::Mlp ReadMlp(int64_t hidden) {
      const int64_t I = Channels(attributes_, kName, "intermediate_size");
      const int64_t U = attributes_.Int("gated", 0, 1) != 0 ? 2 * I : I;
      const bool has_bias = attributes_.Int("mlp_bias", 0, 1) != 0;
      cuda::WeightInput up_bias, down_bias;
      const cuda::MatrixInput up = Matrix("DecoderLayer up", "up_bits", hidden, U);
      if (has_bias) up_bias = Vector("up_bias", U);
      const cuda::MatrixInput down = Matrix("DecoderLayer down", "down_bits", I, hidden);
      if (has_bias) down_bias = Vector("down_bias", hidden);
      const auto read = static_cast<size_t>(port_);
      ExpectInputs(attributes_, kName, attributes_.InputCount() == read + 1 ? read + 1 : read);
      return cuda::Mlp(attributes_, kName, 7, up, up_bias, down, down_bias, LayerIndex(attributes_));
    }

   private:
    // A port beyond what the node has is reported by name, before anything asks for its type.
    void ExpectPort(const char* name) const {
      if (static_cast<size_t>(port_) >= attributes_.InputCount()) {
        throw Error(std::string(kName) + ": input " + name + ": got nothing, expected a tensor; export the bundle again");
      }
    }
    cuda::WeightInput Vector(const char* name, int64_t n) {
      ExpectPort(name);
      return cuda::WeightInput(attributes_, kName, static_cast<size_t>(port_++), name, kFloat, {n});
    }
    cuda::MatrixInput Matrix(const char* name, const char* bits_name, int64_t K, int64_t N) {
      const int first = port_, bits = BitsOf(attributes_, kName, bits_name);
      port_ += PortsAt(bits) + PlanesAt(bits) - 1;
      ExpectPort(name);
      ++port_;
      return cuda::MatrixInput(attributes_, name, {first, first + 1, first + 2, first + 3, first + 4}, true, K, N, bits);
    }

    const Attributes& attributes_;
    int port_;
  };

  // Members are read in their order below, which is that of the inputs.
  DecoderLayer(const Attributes& attributes, WeightReader&& weights)
      : attention_(attributes, kName, kInt8Cache, kLayerScalePort, LayerIndex(attributes)),
        hidden_(Channels(attributes, kName, "hidden_size")),
        parallel_residual_(attributes.Int("parallel_residual", 0, 1) != 0),
        shared_norm_(HasSharedNorm(attributes, kName)),
        norms_(ReadNormPlace(attributes, kName)),
        qk_norm_(ReadQkNorm(attributes, kName)),
        layer_norm_(HasLayerNorm(attributes, kName)),
        rotary_before_norm_(attributes.IntOr("qk_norm_after_rope", 0) != 0 ? attributes.Int("rotary_dim", 0, kMaxHeadDim) : 0),
        epsilon_(ReadEpsilon(attributes, kName)),
        attention_norm_(weights.ReadNormIf(norms_.before, "attention_norm", hidden_, layer_norm_)),
        attention_post_norm_(weights.ReadNormIf(norms_.after, "attention_post_norm", hidden_, layer_norm_)),
        mlp_norm_(shared_norm_ ? attention_norm_ : weights.ReadNormIf(norms_.before, "mlp_norm", hidden_, layer_norm_)),
        mlp_post_norm_(weights.ReadNormIf(norms_.after, "mlp_post_norm", hidden_, layer_norm_)),
        qk_norm_weight_(weights.ReadQkNorm(qk_norm_)),
        qkv_(weights.ReadProjection("DecoderLayer qkv", "qkv_bits", "qkv_bias", 9, "active_qkv", hidden_, attention_.QkvSize())),
        output_(weights.ReadProjection("DecoderLayer o", "o_bits", "output_bias", 10, "active_o", attention_.OutputSize(), hidden_)),
        mlp_(weights.ReadMlp(hidden_)) {
    ExpectWholeBlocks(kName, attention_.OutputSize());
  }

  cuda::AttentionOp attention_;
  int64_t hidden_;
  bool parallel_residual_, shared_norm_;
  NormPlace norms_;
  QkNormKind qk_norm_;
  bool layer_norm_;
  int64_t rotary_before_norm_;  // channels that are rotated before the norm of q and k; 0 where attention rotates
  float epsilon_;
  Norm attention_norm_, attention_post_norm_, mlp_norm_, mlp_post_norm_;
  cuda::WeightInput qk_norm_weight_;
  Projection qkv_, output_;
  cuda::Mlp mlp_;
};

}  // namespace

const OrtCustomOp* DecoderLayerOp() { return Define<DecoderLayer<kFloat16>>(); }
const OrtCustomOp* DecoderLayerInt8Op() { return Define<DecoderLayer<kInt8>>(); }

}  // namespace sol
