#include "cpu/matmul/channel_matmul.h"

#include <algorithm>
#include <string>

namespace sol {
namespace {

constexpr size_t kFetchedBytes = 16384;  // about what memory gives while a phase begins

}  // namespace

size_t ChannelMatMul::ReadKeep(const Context& context) const {
  const int64_t count = keep_.Read(context);
  if (count < 0 || count > static_cast<int64_t>(w_.K)) {
    throw Error(std::string(op_) + ": input " + keep_.Name() + ": got " + std::to_string(count) + ", expected 0 to " +
                std::to_string(w_.K) + " channels");
  }
  return count == 0 ? w_.K : static_cast<size_t>(count);
}

void ChannelMatMul::Fetch(const Member& member, size_t members, size_t keep) const {
  const size_t tasks = row_.Tasks(members);
  if (keep == w_.K) row_.Fetch(member.FirstOf(tasks), tasks, kFetchedBytes);
}

void ChannelMatMul::Total(const float* sums, const float* residual, float* y) const {
  for (size_t n = 0; n < w_.N; ++n) y[n] = sums[n];
  for (size_t p = 1; p < row_.Parts(); ++p) {
    const float* part = sums + p * w_.N;
    for (size_t n = 0; n < w_.N; ++n) y[n] += part[n];
  }
  if (residual == nullptr) return;
  for (size_t n = 0; n < w_.N; ++n) y[n] += residual[n];
}

void ChannelMatMul::Rows(const Context& context, const float* x, size_t tokens, size_t keep, const float* residual, float* y) const {
  const size_t N = w_.N, groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  Activations q;
  Place(memory, [&](Arena& arena) { q = PlaceRows(tokens, arena); });
  Quantize(context, x, tokens, keep, q);
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

Activations ChannelMatMul::PlaceRows(size_t tokens, Arena& arena) const {
  Activations q;
  q.parts = w_.Parts();
  q.phased = arena.Take<int8_t>(tokens * q.parts * w_.K);
  q.step = arena.Take<float>(tokens * (w_.K / kBlock));
  q.sum = arena.Take<float>(tokens * (w_.K / kBlock));
  return q;
}

void ChannelMatMul::Quantize(const Context& context, const float* x, size_t tokens, size_t keep, const Activations& q) const {
  constexpr size_t kRows = 16;
  const size_t K = w_.K, tasks = (tokens + kRows - 1) / kRows;
  thread_local Buffer memory;  // the caller's: a task has no way to say that there is none
  float* copies = keep < K ? memory.Get<float>(tasks * K) : nullptr;
  context.ParallelFor(tasks, [&](size_t task) {
    for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
      const float* from = x + t * K;
      if (keep < K) {
        float* copy = copies + task * K;
        std::copy_n(from, K, copy);
        BestKernels().keep_largest(copy, K, keep);
        from = copy;
      }
      BestKernels().quantize(from, K, t, q);
    }
  });
}

void ChannelMatMul::Tile(const Activations& q, size_t first, size_t tokens, size_t n, size_t width, float* sums) const {
  BestKernels().tile_channel_major(w_, q, first, tokens, n, sums);
  if (bias_ == nullptr) return;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < width; ++i) sums[t * kTile + i] += bias_[n + i];
  }
}

}  // namespace sol
