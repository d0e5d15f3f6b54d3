#include "cpu/layer/mlp.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = ChannelMatMul::kTokensAtOnce;
constexpr size_t kTokensAChunk = 512;  // bounds the scratch memory of a long prompt

// One token. The first matrix has many outputs, so few parts: two keep two members busy, and what is added up is small.
constexpr ChannelMatMul::Cut kUpCut{2, 32768};
constexpr ChannelMatMul::Cut kDownCut{4, 2048};

Activation ReadActivation(const Attributes& attributes, const char* op) {
  const std::string name = attributes.String("activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw Error(std::string(op) + ": attribute activation: got " + name +
              ", expected silu, gelu, gelu_tanh or relu; export the bundle again");
}

}  // namespace

Mlp::Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
         const float* down_bias, int64_t layer)
    : up_(attributes, op, keep_port, "keep_in", up, up_bias, kUpCut, layer),
      down_(attributes, op, keep_port + 1, "keep_mid", down, down_bias, kDownCut, layer), gated_(attributes.Int("gated", 0, 1) != 0),
      activation_(ReadActivation(attributes, op)) {}

void Mlp::Activate(Range channels, const Shared& shared) const {
  const size_t I = Inner();
  const auto [begin, end] = channels;
  up_.AddParts(begin, end, shared.up);
  if (gated_) up_.AddParts(I + begin, I + end, shared.up);
  BestKernels().activate(activation_, shared.up + begin, gated_ ? shared.up + I + begin : nullptr, end - begin, shared.hidden + begin);
}

void Mlp::Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  for (size_t t = 0; t < tokens; t += kTokensAChunk) {
    const size_t at = t * Channels();
    Chunk(context, x + at, std::min(kTokensAChunk, tokens - t), keep, residual != nullptr ? residual + at : nullptr, y + at);
  }
}

void Mlp::Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  const size_t I = Inner(), groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  Activations first;
  float* h = nullptr;
  Place(memory, [&](Arena& arena) {
    first = up_.PlaceRows(tokens, arena);
    h = arena.Take<float>(tokens * I);
  });

  up_.Quantize(context, x, tokens, keep.in, first);
  context.ParallelFor((I + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, I - n);
    alignas(64) float gate[kTokensAtOnce * kTile];
    up_.Tile(first, start, count, n, width, gate);
    if (gated_) {
      alignas(64) float up[kTokensAtOnce * kTile];
      up_.Tile(first, start, count, I + n, width, up);
      BestKernels().activate(activation_, gate, up, count * kTile, gate);
    } else {
      BestKernels().activate(activation_, gate, nullptr, count * kTile, gate);
    }
    for (size_t t = 0; t < count; ++t) std::copy_n(gate + t * kTile, width, h + (start + t) * I + n);
  });
  down_.Rows(context, h, tokens, keep.mid, residual, y);
}

}  // namespace sol
