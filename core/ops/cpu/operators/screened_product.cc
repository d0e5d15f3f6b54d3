#include "cpu/operators/screened_product.h"

#include <algorithm>
#include <cstring>

#include "cpu/operators/top_scores.h"
#include "cpu/simd/prefetch.h"
#include "cpu/threads/team_members.h"

namespace sol {
namespace {

constexpr size_t kPiece = 32;  // candidates of one product, whose weights stay in a core's own cache

// The weights of some outputs, copied to lie as those of a matrix of kPiece outputs.
class Piece {
 public:
  Piece(const Nested& w, Arena& arena)
      : w_(w), base_(arena.Take<uint8_t>(Size(16))), scale_(arena.Take<uint16_t>(Size(1))), zero_(arena.Take<uint8_t>(Size(1))),
        plane1_(arena.Take<uint8_t>(Size(8))), plane2_(arena.Take<uint8_t>(w.bits > 6 ? Size(8) : 0)) {}

  // Of the outputs rows[0 … count - 1].
  Nested Gather(const uint32_t* rows, size_t count) const {
    const size_t blocks = w_.K / kBlock;
    Ask(0, rows, count);
    for (size_t b = 0; b < blocks; ++b) {
      if (b + 1 < blocks) Ask(b + 1, rows, count);
      for (size_t i = 0; i < count; ++i) {
        const size_t from = b * w_.N + rows[i], to = b * kPiece + i;
        std::memcpy(base_ + to * 16, w_.base + from * 16, 16);
        scale_[to] = w_.scale[from];
        zero_[to] = w_.zero[from];
        std::memcpy(plane1_ + to * 8, w_.plane1 + from * 8, 8);
        if (w_.plane2 != nullptr) std::memcpy(plane2_ + to * 8, w_.plane2 + from * 8, 8);
      }
    }
    Nested piece = w_;
    piece.N = kPiece;
    piece.base = base_;
    piece.scale = scale_;
    piece.zero = zero_;
    piece.plane1 = plane1_;
    if (w_.plane2 != nullptr) piece.plane2 = plane2_;
    return piece;
  }

 private:
  size_t Size(size_t each) const { return w_.K / kBlock * kPiece * each; }

  // Every row of a block lies elsewhere.
  void Ask(size_t b, const uint32_t* rows, size_t count) const {
    for (size_t i = 0; i < count; ++i) {
      const size_t at = b * w_.N + rows[i];
      PrefetchLine(w_.plane1 + at * 8);
      if (w_.plane2 != nullptr) PrefetchLine(w_.plane2 + at * 8);
      PrefetchLine(w_.base + at * 16);
      PrefetchLine(w_.scale + at);
      PrefetchLine(w_.zero + at);
    }
  }

  const Nested& w_;
  uint8_t* base_;
  uint16_t* scale_;
  uint8_t *zero_, *plane1_, *plane2_;
};

void Scatter(const float* exact, const uint32_t* rows, size_t count, float* y) {
  for (size_t i = 0; i < count; ++i) y[rows[i]] = exact[i];
}

}  // namespace

void ScreenedProduct::One(const Context& context, const float* x, float* y) const {
  thread_local Buffer memory;
  TokenInput coarse, fine;
  TopScores top;
  float* exact = nullptr;
  Place(memory, [&](Arena& arena) {
    coarse = screen_.PlaceInput(arena);
    fine = TokenInput::BlockMajor(w_, arena);
    top = TopScores(w_.N, candidates_, arena);
    exact = arena.Take<float>(candidates_);
  });
  coarse.Quantize(x);
  fine.Quantize(x);
  const std::shared_ptr<const PackedMatrix> copy = screen_.Copy(context);
  const size_t members = TeamMembers(), tasks = screen_.Tasks(members);
  RunTasks(context, members, tasks, [&](size_t task) {
    screen_.Product(coarse, copy.get(), task, tasks, y);
    const Range outputs = screen_.TaskOutputs(task, tasks);
    top.Look(y, outputs.begin, outputs.end);
  });
  const uint32_t* rows = top.Select(y);
  const size_t shares = TasksOf(candidates_, kPiece, candidates_, members);
  RunTasks(context, members, shares, [&](size_t task) {
    const Range share = ShareOf(candidates_, kPiece, task, shares), tail = ShareOf(w_.N, kPiece, task, shares);
    Exact(fine, rows, share.begin, share.end, exact);
    AddOffset(y, tail.begin, tail.end);
  });
  Scatter(exact, rows, candidates_, y);
}

void ScreenedProduct::Rows(const Context& context, const float* x, size_t tokens, float* y) const {
  screen_.Rows(context, x, tokens, y);
  context.ParallelFor(tokens, [&](size_t t) {
    thread_local Buffer memory;
    TokenInput fine;
    TopScores top;
    float* exact = nullptr;
    Place(memory, [&](Arena& arena) {
      fine = TokenInput::BlockMajor(w_, arena);
      top = TopScores(w_.N, candidates_, arena);
      exact = arena.Take<float>(candidates_);
    });
    float* outputs = y + t * w_.N;
    fine.Quantize(x + t * w_.K);
    top.Look(outputs, 0, w_.N);
    const uint32_t* rows = top.Select(outputs);
    Exact(fine, rows, 0, candidates_, exact);
    AddOffset(outputs, 0, w_.N);
    Scatter(exact, rows, candidates_, outputs);
  });
}

void ScreenedProduct::Exact(const TokenInput& x, const uint32_t* rows, size_t begin, size_t end, float* exact) const {
  thread_local Buffer memory;
  Arena sizes(nullptr);
  Piece(w_, sizes);
  Arena arena(memory.Get<char>(sizes.Used()));
  const Piece piece(w_, arena);
  for (size_t at = begin; at < end; at += kPiece) {
    const size_t count = std::min(kPiece, end - at);
    BestMatMulKernels().row_block_major(piece.Gather(rows + at, count), x.Codes(), 0, count, exact + at);
  }
}

void ScreenedProduct::AddOffset(float* y, size_t begin, size_t end) const {
  for (size_t n = begin; n < end; ++n) y[n] += tail_offset_;
}

}  // namespace sol
