#include "cpu/operators/block_matmul.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = 128;  // a task's sums stay in the core's own cache

}  // namespace

void BlockMatMul::Product(const TokenInput& x, const PackedMatrix* copy, size_t task, size_t tasks, float* y) const {
  const Range outputs = TaskOutputs(task, tasks);
  if (outputs.begin >= outputs.end) return;
  if (w_.bits > 3) return BestMatMulKernels().row_block_major(w_, x.Codes(), outputs.begin, outputs.end, y);
  std::fill(y + outputs.begin, y + outputs.end, 0.0f);
  const auto row = BestMatMulKernels().row_codebook;
  const size_t blocks = w_.K / kBlock;
  if (copy == nullptr) return row(w_, x.Codes(), x.Active(), 0, blocks, outputs.begin, outputs.end, y);
  for (size_t n = outputs.begin; n < outputs.end; n += kCodebookPanel) {
    row(copy->Panel(w_, n), x.Codes(), x.Active(), 0, blocks, 0, std::min(kCodebookPanel, outputs.end - n), y + n);
  }
}

void BlockMatMul::Rows(const Context& context, const float* x, size_t tokens, float* y) const {
  const MatMulKernels& kernels = BestMatMulKernels();
  const size_t blocks = w_.K / kBlock;
  thread_local Buffer memory;
  Activations q;
  q.halves = w_.Halves();
  Place(memory, [&](Arena& arena) {
    (w_.bits == 3 ? q.phased : q.even_odd) = arena.Take<int8_t>(tokens * q.halves * w_.K);
    q.step = arena.Take<float>(tokens * blocks);
    q.sum = arena.Take<float>(tokens * blocks);
  });
  constexpr size_t kRows = 16;
  context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
    for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) kernels.quantize(x + t * w_.K, w_.K, t, q);
  });
  const auto tile = w_.bits == 3 ? kernels.tile_channel_major : kernels.tile_block_major;
  const size_t groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  context.ParallelFor((outputs_ + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, first = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - first), width = std::min(kTile, outputs_ - n);
    alignas(64) float sums[kTokensAtOnce * kTile];
    tile(w_, q, first, count, n, sums);
    for (size_t t = 0; t < count; ++t) std::copy_n(sums + t * kTile, width, y + (first + t) * outputs_ + n);
  });
}

}  // namespace sol
