#include "cpu/operators/block_matmul.h"

#include "cpu/few_tokens.h"
#include "cpu/threads/team_members.h"

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
  const size_t blocks = w_.K / kBlock, stride = (outputs_ + kTile - 1) / kTile * kTile;
  const bool few = tokens <= kFewTokens;
  thread_local Buffer memory;
  Activations q;
  float* few_sums = y;
  q.halves = w_.Halves();
  Place(memory, [&](Arena& arena) {
    if (few && stride != outputs_) few_sums = arena.Take<float>(tokens * stride);
    (w_.bits == 3 ? q.phased : q.even_odd) = arena.Take<int8_t>(tokens * q.halves * w_.K);
    q.step = arena.Take<float>(tokens * blocks);
    q.sum = arena.Take<float>(tokens * blocks);
  });
  const size_t rows = few ? 1 : 16;
  context.ParallelFor((tokens + rows - 1) / rows, [&](size_t task) {
    for (size_t t = task * rows; t < std::min(tokens, (task + 1) * rows); ++t) kernels.quantize(x + t * w_.K, w_.K, t, q);
  });
  const auto tile = w_.bits == 3 ? kernels.tile_channel_major : kernels.tile_block_major;
  if (few) {
    const std::shared_ptr<const PackedMatrix> copy = Copy(context);
    const size_t unit = copy != nullptr ? kCodebookPanel : kTile;
    const size_t most = std::max(kFewSums / tokens / kTile, size_t{4}) * kTile, tasks = TasksOf(outputs_, unit, most, TeamMembers());
    context.ParallelFor(tasks, [&](size_t task) {
      const Range outputs = ShareOf(outputs_, unit, task, tasks);
      const size_t whole = (outputs.end + kTile - 1) / kTile * kTile;
      for (size_t t = 0; t < tokens; ++t) std::fill(few_sums + t * stride + outputs.begin, few_sums + t * stride + whole, 0.0f);
      if (copy == nullptr) return tile(w_, q, 0, tokens, {0, blocks, outputs.begin, outputs.end}, few_sums + outputs.begin, stride);
      for (size_t n = outputs.begin; n < outputs.end; n += kCodebookPanel) {
        tile(copy->Panel(w_, n), q, 0, tokens, {0, blocks, 0, std::min(kCodebookPanel, outputs.end - n)}, few_sums + n, stride);
      }
    });
    if (few_sums == y) return;
    for (size_t t = 0; t < tokens; ++t) std::copy_n(few_sums + t * stride, outputs_, y + t * outputs_);
    return;
  }
  const size_t groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  context.ParallelFor((outputs_ + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, first = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - first), width = std::min(kTile, outputs_ - n);
    alignas(64) float sums[kTokensAtOnce * kTile];
    std::fill(sums, sums + count * kTile, 0.0f);
    tile(w_, q, first, count, {0, blocks, n, n + kTile}, sums, kTile);
    for (size_t t = 0; t < count; ++t) std::copy_n(sums + t * kTile, width, y + (first + t) * outputs_ + n);
  });
}

}  // namespace sol
