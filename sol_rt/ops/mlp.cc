#include "mlp.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = 128;  // a task's sums stay in the core's own cache
constexpr size_t kTokensAChunk = 512;  // bounds the scratch memory of a long prompt

// One token. The first matrix has many outputs, so few parts: two keep two members busy, and what is added up is small.
constexpr size_t kUpParts = 2;
constexpr size_t kMostUpOutputs = 32768;
constexpr size_t kDownParts = 4;
constexpr size_t kMostDownOutputs = 2048;

Activation ReadActivation(const Attributes& attributes, const char* op) {
  const std::string name = attributes.String("activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw Error(std::string(op) + ": attribute activation: got " + name +
              ", expected silu, gelu, gelu_tanh or relu; export the bundle again");
}

size_t Kept(const char* op, const char* name, int64_t count, size_t channels) {
  if (count < 0 || count > static_cast<int64_t>(channels)) {
    throw Error(std::string(op) + ": input " + name + ": got " + std::to_string(count) + ", expected 0 to " +
                std::to_string(channels) + " channels");
  }
  return count == 0 ? channels : static_cast<size_t>(count);
}

// Prunes and quantizes every token.
void QuantizeAll(const Context& context, const float* x, size_t tokens, size_t n, size_t keep, const Activations& q) {
  constexpr size_t kRows = 16;
  context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
    thread_local Buffer pruned;
    float* copy = pruned.Get<float>(n);
    for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
      const float* from = x + t * n;
      if (keep < n) {
        std::copy_n(from, n, copy);
        BestKernels().keep_largest(copy, n, keep);
        from = copy;
      }
      BestKernels().quantize(from, n, t, q);
    }
  });
}

void AddBias(const float* bias, size_t n, size_t width, size_t tokens, float* sums) {
  if (bias == nullptr) return;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < width; ++i) sums[t * kTile + i] += bias[n + i];
  }
}

// Codes of several tokens.
Activations PlaceRows(const Nested& w, size_t tokens, Arena& arena) {
  Activations q;
  q.parts = w.Parts();
  q.phased = arena.Take<int8_t>(tokens * q.parts * w.K);
  q.step = arena.Take<float>(tokens * (w.K / kBlock));
  q.sum = arena.Take<float>(tokens * (w.K / kBlock));
  return q;
}

}  // namespace

Mlp::Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
         const float* down_bias, int64_t layer)
    : op_(op), keep_in_(attributes, op, keep_port, "keep_in", layer), keep_mid_(attributes, op, keep_port + 1, "keep_mid", layer), up_(up), down_(down),
      up_bias_(up_bias), down_bias_(down_bias), up_row_(up, up_bias, kUpParts, kMostUpOutputs),
      down_row_(down, down_bias, kDownParts, kMostDownOutputs), gated_(attributes.Int("gated", 0, 1) != 0),
      activation_(ReadActivation(attributes, op)) {}

Mlp::Keep Mlp::ReadKeep(const Context& context) const {
  return {Kept(op_, "keep_in", keep_in_.Read(context), up_.K), Kept(op_, "keep_mid", keep_mid_.Read(context), Inner())};
}

void Mlp::Activate(Range channels, const Shared& shared) const {
  const size_t I = Inner();
  const auto [begin, end] = channels;
  up_row_.AddParts(begin, end, shared.up);
  if (gated_) up_row_.AddParts(I + begin, I + end, shared.up);
  BestKernels().activate(activation_, shared.up + begin, gated_ ? shared.up + I + begin : nullptr, end - begin, shared.hidden + begin);
}

void Mlp::Add(float* sums, const float* residual, float* y) const {
  const size_t K = up_.K;
  down_row_.AddParts(0, K, sums);
  for (size_t k = 0; k < K; ++k) y[k] = residual != nullptr ? residual[k] + sums[k] : sums[k];
}

void Mlp::Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  for (size_t t = 0; t < tokens; t += kTokensAChunk) {
    const size_t at = t * up_.K;
    Chunk(context, x + at, std::min(kTokensAChunk, tokens - t), keep, residual != nullptr ? residual + at : nullptr, y + at);
  }
}

void Mlp::Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  const Kernels& kernels = BestKernels();
  const size_t K = up_.K, I = Inner(), groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  Activations first, second;
  float* h = nullptr;
  Place(memory, [&](Arena& arena) {
    first = PlaceRows(up_, tokens, arena);
    second = PlaceRows(down_, tokens, arena);
    h = arena.Take<float>(tokens * I);
  });

  QuantizeAll(context, x, tokens, K, keep.in, first);
  context.ParallelFor((I + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, I - n);
    alignas(64) float gate[kTokensAtOnce * kTile];
    kernels.tile_channel_major(up_, first, start, count, n, gate);
    AddBias(up_bias_, n, width, count, gate);
    if (gated_) {
      alignas(64) float up[kTokensAtOnce * kTile];
      kernels.tile_channel_major(up_, first, start, count, I + n, up);
      AddBias(up_bias_, I + n, width, count, up);
      kernels.activate(activation_, gate, up, count * kTile, gate);
    } else {
      kernels.activate(activation_, gate, nullptr, count * kTile, gate);
    }
    for (size_t t = 0; t < count; ++t) std::copy_n(gate + t * kTile, width, h + (start + t) * I + n);
  });

  QuantizeAll(context, h, tokens, I, keep.mid, second);
  context.ParallelFor((K + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, K - n);
    alignas(64) float sums[kTokensAtOnce * kTile];
    kernels.tile_channel_major(down_, second, start, count, n, sums);
    AddBias(down_bias_, n, width, count, sums);
    for (size_t t = 0; t < count; ++t) {
      const size_t at = (start + t) * K + n;
      for (size_t i = 0; i < width; ++i) {
        y[at + i] = residual != nullptr ? residual[at + i] + sums[t * kTile + i] : sums[t * kTile + i];
      }
    }
  });
}

}  // namespace sol
