#include "cpu/layer/mlp.h"

#include <algorithm>

#include "common/inputs/nested_inputs.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = ChannelMatMul::kTokensAtOnce;
constexpr size_t kTokensAChunk = 512;  // bounds the scratch memory of a long prompt

// The first matrix has many outputs, so few splits: two keep two members busy, and what is added up is small.
constexpr SplitK kUpSplit{2, 32768};
constexpr SplitK kDownSplit{4, 2048};

}  // namespace

Mlp::Mlp(const Attributes& attributes, const char* op, size_t active_port, const Nested& up, const float* up_bias, const Nested& down,
         const float* down_bias, int64_t layer)
    : up_(attributes, op, active_port, "active_up", up, up_bias, kUpSplit, layer),
      down_(attributes, op, active_port + 1, "active_down", down, down_bias, kDownSplit, layer), gated_(attributes.Int("gated", 0, 1) != 0),
      activation_(ReadActivation(attributes, op)) {}

void Mlp::Activate(size_t task, size_t tasks, float* up_sums, float* hidden) const {
  const size_t I = Inner();
  const auto [begin, end] = ShareOf(I, kActivateStep, task, tasks);
  up_.AddSplits(begin, end, up_sums);
  if (gated_) up_.AddSplits(I + begin, I + end, up_sums);
  const float* factor = gated_ ? up_sums + I + begin : nullptr;
  BestElementwiseKernels().activate(activation_, up_sums + begin, factor, end - begin, hidden + begin);
}

void Mlp::Rows(const Context& context, const float* x, size_t tokens, ActiveChannels active, const float* residual, float* y) const {
  for (size_t t = 0; t < tokens; t += kTokensAChunk) {
    const size_t at = t * Channels();
    Chunk(context, x + at, std::min(kTokensAChunk, tokens - t), active, residual != nullptr ? residual + at : nullptr, y + at);
  }
}

void Mlp::Chunk(const Context& context, const float* x, size_t tokens, ActiveChannels active, const float* residual, float* y) const {
  const size_t I = Inner(), groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  Activations first;
  float* h = nullptr;
  if (tokens <= kFewTokens) {
    float* sums = nullptr;
    Place(memory, [&](Arena& arena) {
      sums = up_.PlaceSums(arena, tokens);
      h = arena.Take<float>(tokens * I);
    });
    up_.FewSums(context, x, tokens, active.up, sums);
    context.ParallelFor(tokens, [&](size_t t) { Activate(0, 1, sums + t * up_.SumsOfToken(), h + t * I); });
    down_.Rows(context, h, tokens, active.down, residual, y);
    return;
  }
  Place(memory, [&](Arena& arena) {
    first = up_.PlaceRows(tokens, arena);
    h = arena.Take<float>(tokens * I);
  });

  up_.Quantize(context, x, tokens, active.up, first);
  context.ParallelFor((I + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, I - n);
    alignas(64) float gate[kTokensAtOnce * kTile];
    up_.Tile(first, start, count, n, width, gate);
    if (gated_) {
      alignas(64) float up[kTokensAtOnce * kTile];
      up_.Tile(first, start, count, I + n, width, up);
      BestElementwiseKernels().activate(activation_, gate, up, count * kTile, gate);
    } else {
      BestElementwiseKernels().activate(activation_, gate, nullptr, count * kTile, gate);
    }
    for (size_t t = 0; t < count; ++t) std::copy_n(gate + t * kTile, width, h + (start + t) * I + n);
  });
  down_.Rows(context, h, tokens, active.down, residual, y);
}

}  // namespace sol
