// PrunedMLP: the whole MLP of a layer, reading only the input channels of largest magnitude of either matrix.

#include <algorithm>
#include <array>
#include <string>

#include "nested.h"
#include "nested_inputs.h"
#include "op.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = 128;   // a task's sums stay in the core's own cache
constexpr size_t kTokensAChunk = 512;   // bounds the scratch memory of a long prompt

Activation ReadActivation(const Attributes& attributes, const char* op) {
  const std::string name = attributes.String("activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw Error(std::string(op) + ": attribute activation: got " + name +
              ", expected silu, gelu, gelu_tanh or relu; export the bundle again");
}

// Activations of some tokens, as inputs of one matrix, in scratch memory of the calling thread.
class Scratch {
 public:
  Activations Rows(size_t tokens, const Nested& w) {
    Activations q;
    q.parts = w.Parts();
    if (tokens == 1) q.natural = natural_.Get<int8_t>(q.parts * w.K);
    q.phased = phased_.Get<int8_t>(tokens * q.parts * w.K);
    q.step = step_.Get<float>(tokens * (w.K / kBlock));
    q.sum = sum_.Get<float>(tokens * (w.K / kBlock));
    return q;
  }
  ActiveQuads Active(const Nested& w) {
    const size_t size = w.K + ActiveQuads::kSlack;
    return {rows_.Get<uint8_t>(size), codes_.Get<int8_t>(w.Parts() * size), begin_.Get<uint32_t>(w.K / kBlock + 1)};
  }
  float* Pruned(size_t count) { return pruned_.Get<float>(count); }

 private:
  Buffer natural_, phased_, step_, sum_, rows_, codes_, begin_, pruned_;
};

class PrunedMLP {
 public:
  static constexpr const char* kName = "PrunedMLP";
  static constexpr std::array<Port, 15> kInputs{{{"x", kFloat},
                                                 {"keep_in", kInt64},
                                                 {"keep_mid", kInt64},
                                                 {"up_base", kUInt4},
                                                 {"up_scale", kFloat16},
                                                 {"up_zero", kUInt8},
                                                 {"down_base", kUInt4},
                                                 {"down_scale", kFloat16},
                                                 {"down_zero", kUInt8},
                                                 // Planes and biases as the attributes say: their place decides no type.
                                                 {"extra0", kAny, kOptional},
                                                 {"extra1", kAny, kOptional},
                                                 {"extra2", kAny, kOptional},
                                                 {"extra3", kAny, kOptional},
                                                 {"extra4", kAny, kOptional},
                                                 {"extra5", kAny, kOptional}}};
  static constexpr std::array<Port, 1> kOutputs{{{"y", kFloat}}};

  explicit PrunedMLP(const Attributes& attributes) {
    const int bits = Bits(attributes, kName);
    const int64_t K = Channels(attributes, kName, "K"), I = Channels(attributes, kName, "I");
    gated_ = attributes.Int("gated", 0, 1) != 0;
    activation_ = ReadActivation(attributes, kName);
    const bool has_bias = attributes.Int("has_bias", 0, 1) != 0;
    const int planes = bits == 4 ? 0 : bits == 6 ? 2 : 4;
    ExpectInputs(attributes, kName, static_cast<size_t>(9 + planes + (has_bias ? 2 : 0)));
    const int64_t U = gated_ ? 2 * I : I;
    up_ = ReadNested(attributes, "PrunedMLP up", {3, 4, 5, 9, 11}, true, K, U, bits);
    down_ = ReadNested(attributes, "PrunedMLP down", {6, 7, 8, 10, 12}, true, I, K, bits);
    if (has_bias) {
      const auto read = [&](int port, const char* name, int64_t length) {
        const Tensor tensor = attributes.Constant(static_cast<size_t>(port), name);
        Expect(kName, name, tensor, kFloat, {length});
        return tensor.As<float>();
      };
      up_bias_ = read(9 + planes, "up_bias", U);
      down_bias_ = read(10 + planes, "down_bias", K);
    }
  }

  void Compute(Context& context) const {
    const Tensor x = context.Input(0);
    if (x.rank == 0 || x.dims[x.rank - 1] != static_cast<int64_t>(up_.K)) {
      throw Error(std::string(kName) + ": input x: got shape " + x.Shape() + ", expected [..., " + std::to_string(up_.K) +
                  "]");
    }
    const Keep keep = {Kept(context, 1, "keep_in", up_.K), Kept(context, 2, "keep_mid", Inner())};
    float* y = context.Output<float>(0, x.dims.data(), x.rank);
    const size_t tokens = static_cast<size_t>(x.Elements()) / up_.K;
    if (tokens == 1) {
      One(context, x.As<float>(), keep, y);
      return;
    }
    for (size_t t = 0; t < tokens; t += kTokensAChunk) {
      Many(context, x.As<float>() + t * up_.K, std::min(kTokensAChunk, tokens - t), keep, y + t * up_.K);
    }
  }

 private:
  // Channels kept at the inputs of the two matrices.
  struct Keep {
    size_t in, mid;
  };

  size_t Inner() const { return down_.K; }

  // A count of channels; 0 prunes nothing.
  static size_t Kept(const Context& context, size_t port, const char* name, size_t channels) {
    const Tensor tensor = context.Input(port);
    Expect(kName, name, tensor, kInt64, {1});
    const int64_t count = *tensor.As<int64_t>();
    if (count < 0 || count > static_cast<int64_t>(channels)) {
      throw Error(std::string(kName) + ": input " + name + ": got " + std::to_string(count) + ", expected 0 to " +
                  std::to_string(channels) + " channels");
    }
    return count == 0 ? channels : static_cast<size_t>(count);
  }

  // x itself, or a pruned copy of it.
  const float* Prune(const float* x, size_t n, size_t keep, float* copy) const {
    if (keep >= n) return x;
    std::copy_n(x, n, copy);
    BestKernels().keep_largest(copy, n, keep);
    return copy;
  }

  static void Start(const float* bias, size_t begin, size_t end, float* y) {
    if (bias != nullptr) {
      std::copy(bias + begin, bias + end, y + begin);
    } else {
      std::fill(y + begin, y + end, 0.0f);
    }
  }

  void One(Context& context, const float* x, Keep keep, float* y) const {
    const Kernels& kernels = BestKernels();
    const size_t K = up_.K, I = Inner();
    thread_local Scratch scratch;
    thread_local Buffer hidden, partial;

    // Up: a task has some outputs. Rows are read in pieces, so tasks are as wide as the threads allow.
    Activations q = scratch.Rows(1, up_);
    ActiveQuads active = scratch.Active(up_);
    kernels.quantize(Prune(x, K, keep.in, scratch.Pruned(K)), K, 0, q);
    kernels.list_active(q, K, active);
    float* u = hidden.Get<float>(up_.N);
    const Range all = {0, K / kBlock};
    const size_t width = TaskWidth(I);
    context.ParallelFor((I + width - 1) / width, [&](size_t task) {
      const size_t begin = task * width, end = std::min(I, begin + width);
      Start(up_bias_, begin, end, u);
      kernels.row_channel_major(up_, q, active, all, begin, end, u);
      if (gated_) {
        Start(up_bias_, I + begin, I + end, u);
        kernels.row_channel_major(up_, q, active, all, I + begin, I + end, u);
      }
      kernels.activate(activation_, u + begin, gated_ ? u + I + begin : nullptr, end - begin, u + begin);
    });

    // Down: few outputs from many channels. A task has some of the channels, whose rows are read whole. The number of parts
    // is fixed: it decides the order of the sums.
    q = scratch.Rows(1, down_);
    active = scratch.Active(down_);
    kernels.quantize(Prune(u, I, keep.mid, u), I, 0, q);
    kernels.list_active(q, I, active);
    constexpr size_t kMostParts = 4, kMostOutputs = 2048;
    const size_t blocks = I / kBlock, part = (blocks + kMostParts - 1) / kMostParts, parts = (blocks + part - 1) / part;
    const size_t ranges = (K + kMostOutputs - 1) / kMostOutputs;
    float* sums = partial.Get<float>(parts * K);
    context.ParallelFor(parts * ranges, [&](size_t task) {
      const size_t first = task / ranges * part, begin = task % ranges * kMostOutputs;
      const size_t end = std::min(K, begin + kMostOutputs);
      float* to = sums + task / ranges * K;
      Start(first == 0 ? down_bias_ : nullptr, begin, end, to);
      kernels.row_channel_major(down_, q, active, {first, std::min(blocks, first + part)}, begin, end, to);
    });
    std::copy_n(sums, K, y);
    for (size_t p = 1; p < parts; ++p) {
      for (size_t k = 0; k < K; ++k) y[k] += sums[p * K + k];
    }
  }

  // Outputs a task: whole vectors, a task for every thread, and more tasks where the rows are long.
  static size_t TaskWidth(size_t outputs) {
    constexpr size_t kStep = 128, kMost = 1024;
    const size_t even = (outputs + ThreadCount::Estimate() - 1) / ThreadCount::Estimate();
    return std::min(kMost, (even + kStep - 1) / kStep * kStep);
  }

  // Prunes and quantizes every token.
  void QuantizeAll(Context& context, const float* x, size_t tokens, size_t n, size_t keep, const Activations& q) const {
    constexpr size_t kRows = 16;
    context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
      thread_local Buffer pruned;
      float* copy = pruned.Get<float>(n);
      for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
        BestKernels().quantize(Prune(x + t * n, n, keep, copy), n, t, q);
      }
    });
  }

  static void AddBias(const float* bias, size_t n, size_t width, size_t tokens, float* sums) {
    if (bias == nullptr) return;
    for (size_t t = 0; t < tokens; ++t) {
      for (size_t i = 0; i < width; ++i) sums[t * kTile + i] += bias[n + i];
    }
  }

  void Many(Context& context, const float* x, size_t tokens, Keep keep, float* y) const {
    const Kernels& kernels = BestKernels();
    const size_t K = up_.K, I = Inner(), groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
    thread_local Scratch scratch;
    thread_local Buffer hidden;

    Activations q = scratch.Rows(tokens, up_);
    QuantizeAll(context, x, tokens, K, keep.in, q);
    float* h = hidden.Get<float>(tokens * I);
    context.ParallelFor((I + kTile - 1) / kTile * groups, [&](size_t task) {
      const size_t n = task / groups * kTile, first = task % groups * kTokensAtOnce;
      const size_t count = std::min(kTokensAtOnce, tokens - first), width = std::min(kTile, I - n);
      alignas(64) float gate[kTokensAtOnce * kTile];
      kernels.tile_channel_major(up_, q, first, count, n, gate);
      AddBias(up_bias_, n, width, count, gate);
      if (gated_) {
        alignas(64) float up[kTokensAtOnce * kTile];
        kernels.tile_channel_major(up_, q, first, count, I + n, up);
        AddBias(up_bias_, I + n, width, count, up);
        kernels.activate(activation_, gate, up, count * kTile, gate);
      } else {
        kernels.activate(activation_, gate, nullptr, count * kTile, gate);
      }
      for (size_t t = 0; t < count; ++t) std::copy_n(gate + t * kTile, width, h + (first + t) * I + n);
    });

    q = scratch.Rows(tokens, down_);
    QuantizeAll(context, h, tokens, I, keep.mid, q);
    context.ParallelFor((K + kTile - 1) / kTile * groups, [&](size_t task) {
      const size_t n = task / groups * kTile, first = task % groups * kTokensAtOnce;
      const size_t count = std::min(kTokensAtOnce, tokens - first), width = std::min(kTile, K - n);
      alignas(64) float sums[kTokensAtOnce * kTile];
      kernels.tile_channel_major(down_, q, first, count, n, sums);
      AddBias(down_bias_, n, width, count, sums);
      for (size_t t = 0; t < count; ++t) std::copy_n(sums + t * kTile, width, y + (first + t) * K + n);
    });
  }

  Nested up_, down_;
  const float* up_bias_ = nullptr;
  const float* down_bias_ = nullptr;
  bool gated_ = false;
  Activation activation_ = Activation::kSilu;
};

}  // namespace

const OrtCustomOp* PrunedMLPOp() { return Define<PrunedMLP>(); }

}  // namespace sol
