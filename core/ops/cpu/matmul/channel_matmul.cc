#include "cpu/matmul/channel_matmul.h"

#include <string>

#include "cpu/threads/team_members.h"

namespace sol {
namespace {

constexpr size_t kFetchedBytes = 16384;  // about what memory gives while a phase begins

// Into the core's second-level cache: what is computed meanwhile keeps the first.
void PrefetchBytes(const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

// Scales, tables' choice, zero points and residual planes of some outputs of a block; returns their bytes.
size_t PrefetchRest(const Nested& w, size_t block, Range outputs) {
  const size_t at = block * w.N + outputs.begin, count = outputs.end - outputs.begin;
  if (w.bits == 3) {
    PrefetchBytes(w.block_scale + at, count);
    return count;
  }
  PrefetchBytes(w.scale + at, count * 2);
  PrefetchBytes(w.zero + at, count);
  if (w.plane1 != nullptr) PrefetchBytes(w.plane1 + at * 8, count * 8);
  if (w.plane2 != nullptr) PrefetchBytes(w.plane2 + at * 8, count * 8);
  return count * (3 + (w.plane1 != nullptr ? 8 : 0) + (w.plane2 != nullptr ? 8 : 0));
}

}  // namespace

size_t ChannelMatMul::ReadActive(const Context& context) const {
  const int64_t count = active_.Read(context);
  if (count < 0 || count > static_cast<int64_t>(w_.K)) {
    throw Error(std::string(op_) + ": input " + active_.Name() + ": got " + std::to_string(count) + ", expected 0 to " +
                std::to_string(w_.K) + " channels");
  }
  return count == 0 ? w_.K : static_cast<size_t>(count);
}

std::shared_ptr<const PackedMatrix> ChannelMatMul::Copy(const Context& context, size_t active) const {
  return w_.bits != 4 || active * 8 < w_.K * 7 ? nullptr : copy_->Get(context, w_, splits_);
}

void ChannelMatMul::Prefetch(const Member& member, size_t members, size_t active, const PackedMatrix* copy) const {
  if (active != w_.K) return;
  const size_t tasks = Tasks(members), task = member.FirstOf(tasks);
  const Range blocks = BlocksOf(task, tasks), outputs = OutputsOf(task, tasks);
  if (copy != nullptr) {
    const size_t bytes = (blocks.end - blocks.begin) * (outputs.end - outputs.begin) * kPackedBytes;
    PrefetchBytes(PlaceInCopy(copy->Data(), w_.N, blocks.begin, blocks.end, blocks.begin, outputs.begin).base, std::min(bytes, kFetchedBytes));
    return;
  }
  const size_t run = (outputs.end - outputs.begin) / (w_.bits == 3 ? 4 : 2);
  size_t fetched = 0;
  for (size_t b = blocks.begin; b < blocks.end && fetched < kFetchedBytes; ++b) {
    for (size_t k = b * kBlock; k < (b + 1) * kBlock && fetched < kFetchedBytes; ++k, fetched += run) {
      if (w_.bits > 3) {
        PrefetchBytes(w_.base + k * (w_.N / 2) + outputs.begin / 2, run);
        continue;
      }
      PrefetchBytes(w_.low + k * (w_.N / 4) + outputs.begin / 4, run);
      PrefetchBytes(w_.high + k * (w_.N / 8) + outputs.begin / 8, run / 2);
      fetched += run / 2;
    }
    fetched += PrefetchRest(w_, b, outputs);
  }
}

void ChannelMatMul::AddSplits(size_t begin, size_t end, float* sums) const {
  for (size_t split = 1; split < splits_; ++split) {
    const float* from = sums + split * Stride();
    for (size_t n = begin; n < end; ++n) sums[n] += from[n];
  }
}

void ChannelMatMul::Total(const float* sums, const float* residual, float* y) const {
  for (size_t n = 0; n < w_.N; ++n) y[n] = sums[n];
  for (size_t split = 1; split < splits_; ++split) {
    const float* from = sums + split * Stride();
    for (size_t n = 0; n < w_.N; ++n) y[n] += from[n];
  }
  if (residual == nullptr) return;
  for (size_t n = 0; n < w_.N; ++n) y[n] += residual[n];
}

void ChannelMatMul::Rows(const Context& context, const float* x, size_t tokens, size_t active, const float* residual, float* y) const {
  const size_t N = w_.N, groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  if (tokens <= kFewTokens) {
    float* sums = nullptr;
    Place(memory, [&](Arena& arena) { sums = PlaceSums(arena, tokens); });
    FewSums(context, x, tokens, active, sums);
    context.ParallelFor(tokens, [&](size_t t) { Total(sums + t * SumsOfToken(), residual != nullptr ? residual + t * N : nullptr, y + t * N); });
    return;
  }
  Activations q;
  Place(memory, [&](Arena& arena) { q = PlaceRows(tokens, arena); });
  Quantize(context, x, tokens, active, q);
  context.ParallelFor((N + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, N - n);
    alignas(64) float sums[kTokensAtOnce * kTile];
    Tile(q, start, count, n, width, sums);
    for (size_t t = 0; t < count; ++t) {
      const size_t at = (start + t) * N + n;
      for (size_t i = 0; i < width; ++i) {
        y[at + i] = residual != nullptr ? residual[at + i] + sums[t * kTile + i] : sums[t * kTile + i];
      }
    }
  });
}

void ChannelMatMul::FewSums(const Context& context, const float* x, size_t tokens, size_t active, float* sums) const {
  const size_t members = TeamMembers();
  thread_local Buffer memory;
  if (tokens * active <= w_.K) {  // each token's own channels are fewer than all
    TokenInput* inputs = nullptr;
    Place(memory, [&](Arena& arena) { inputs = arena.Each(tokens, [&] { return PlaceInput(arena); }); });
    context.ParallelFor(tokens, [&](size_t t) { inputs[t].Quantize(x + t * w_.K, active); });
    const size_t tasks = Tasks(members);
    context.ParallelFor(tasks * tokens, [&](size_t i) { Product(inputs[i % tokens], nullptr, i / tokens, tasks, sums + i % tokens * SumsOfToken()); });
    return;
  }
  Activations q;
  Place(memory, [&](Arena& arena) { q = PlaceRows(tokens, arena); });
  Quantize(context, x, tokens, active, q);
  const std::shared_ptr<const PackedMatrix> copy = Copy(context, active);
  Nested w = w_;
  if (copy != nullptr) w.packed = copy->Data();
  // Outputs of a task: their sums of all tokens stay in the core's own cache.
  const size_t most = std::max(kFewSums / tokens / kStep, size_t{4}) * kStep;
  const size_t ranges = TasksOf(w_.N, kStep, most, std::max(members / splits_, size_t{1}));
  context.ParallelFor(splits_ * ranges, [&](size_t task) {
    const size_t split = task / ranges;
    const Range blocks = ShareOf(w_.K / kBlock, 1, split, splits_), outputs = ShareOf(w_.N, kStep, task % ranges, ranges);
    float* to = sums + split * Stride();
    for (size_t t = 0; t < tokens; ++t) BeginSums(split, outputs, to + t * SumsOfToken());
    BestMatMulKernels().tile_channel_major(w, q, 0, tokens, {blocks.begin, blocks.end, outputs.begin, outputs.end}, to + outputs.begin, SumsOfToken());
    for (size_t t = 0; t < tokens; ++t) EndSums(split, outputs, to + t * SumsOfToken());
  });
}

Activations ChannelMatMul::PlaceRows(size_t tokens, Arena& arena) const {
  Activations q;
  q.halves = w_.Halves();
  q.phased = arena.Take<int8_t>(tokens * q.halves * w_.K);
  q.step = arena.Take<float>(tokens * (w_.K / kBlock));
  q.sum = arena.Take<float>(tokens * (w_.K / kBlock));
  return q;
}

void ChannelMatMul::Quantize(const Context& context, const float* x, size_t tokens, size_t active, const Activations& q) const {
  const size_t rows = tokens <= kFewTokens ? 1 : 16, K = w_.K, tasks = (tokens + rows - 1) / rows;
  thread_local Buffer memory;  // the caller's: a task has no way to say that there is none
  float* copies = active < K ? memory.Get<float>(tasks * K) : nullptr;
  context.ParallelFor(tasks, [&](size_t task) {
    for (size_t t = task * rows; t < std::min(tokens, (task + 1) * rows); ++t) {
      const float* from = x + t * K;
      if (active < K) {
        float* copy = copies + task * K;
        std::copy_n(from, K, copy);
        BestMatMulKernels().keep_largest(copy, K, active);
        from = copy;
      }
      BestMatMulKernels().quantize(from, K, t, q);
    }
  });
}

void ChannelMatMul::Tile(const Activations& q, size_t first, size_t tokens, size_t n, size_t width, float* sums) const {
  std::fill(sums, sums + tokens * kTile, 0.0f);
  BestMatMulKernels().tile_channel_major(w_, q, first, tokens, {0, w_.K / kBlock, n, n + kTile}, sums, kTile);
  if (bias_ == nullptr) return;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < width; ++i) sums[t * kTile + i] += bias_[n + i];
  }
}

}  // namespace sol
