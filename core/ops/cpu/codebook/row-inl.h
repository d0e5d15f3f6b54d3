// One token times a matrix of 3 bits: y [N] = x [K] W, for some of the outputs.
//
// With x[k] = a C[k] in every block of 32 channels, C an integer code, and W as common/nested_format.h has it,
//
//   y[n] = s[n] sum over blocks of a m (sum over the block's k of codebook[t][code[k, n]] C[k])
//
// The sums of integers are exact; the rest is float32. Only the rows of active channels are read, four at a time (ActiveQuads), and asked for
// ahead of time, 512 outputs at once: a line of every row of `high`, two of `low`. step-inl.h computes a block of some outputs; those past the last
// whole step are done on padded copies.

#if defined(SOL_CODEBOOK_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_CODEBOOK_ROW_INL_H_
#undef SOL_CODEBOOK_ROW_INL_H_
#else
#define SOL_CODEBOOK_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "cpu/codebook/step-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// With VBMI vectors of 64 bytes, else of 32 at most.
#if HWY_TARGET <= HWY_AVX3_DL
using StepBytes = hn::ScalableTag<uint8_t>;
#else
using StepBytes = hn::CappedTag<uint8_t, 32>;
#endif
using CodebookStep = BlockStep<StepBytes>;

// The last outputs of a row, fewer than a step has, a multiple of 32.
class PaddedStep {
 public:
  explicit PaddedStep(size_t outputs) : outputs_(outputs) {
    if (outputs > 0) copy_ = {};
  }

  HWY_NOINLINE void Add(const CodebookStep& step, const BlockView& v, size_t low_stride, const BlockQuads& quads, int32_t first_sum, float a, Asks& asks) {
    for (const uint8_t* row = quads.row; row != quads.end; ++row) {
      std::memcpy(copy_.low + *row * kLowBytes, v.base + *row * low_stride, outputs_ / 4);
      std::memcpy(copy_.high + *row * kLowBytes / 2, v.high + *row * low_stride / 2, outputs_ / 8);
    }
    std::memcpy(copy_.block_scale, v.block_scale, outputs_);
    const BlockView view = {copy_.low, nullptr, nullptr, nullptr, nullptr, copy_.high, copy_.block_scale};
    step.Add(view, QuadRows(quads, kLowBytes), quads, first_sum, a, asks, copy_.y);
  }
  void Store(float* y) {
    if (outputs_ == 0) return;
    CodebookStep::Order(copy_.y);
    std::copy_n(copy_.y, outputs_, y);
  }

 private:
  static constexpr size_t kLowBytes = CodebookStep::kOutputs / 4;  // of a row

  struct Copy {
    HWY_ALIGN uint8_t low[kBlock * kLowBytes], high[kBlock * kLowBytes / 2], block_scale[CodebookStep::kOutputs];
    HWY_ALIGN float y[CodebookStep::kOutputs];
  };

  size_t outputs_;
  Copy copy_;  // written only where there are such outputs: most matrices have none, and it is large
};

inline void RowCodebook(const Nested& w, const Activations& x, const ActiveQuads& active, size_t first_block, size_t end_block, size_t begin,
                        size_t end, float* y) {
  constexpr size_t kAhead = 512;  // outputs that are asked for at a time
  constexpr size_t kOutputs = CodebookStep::kOutputs;
  static_assert(kCodebookPanel % kOutputs == 0);
  const CodebookStep step(w.codebook);
  const size_t low_stride = w.N / 4, whole_end = end - (end - begin) % kOutputs;
  PaddedStep padded(end - whole_end);
  const ChannelRows<3> rows(w, first_block, end_block, begin, end);
  AheadCursor<3> ahead(w, rows, active, first_block, end_block, begin, end, kAhead);
  for (size_t b = first_block; b < end_block; ++b) {
    if (active.begin[b] == active.begin[b + 1]) continue;
    const BlockQuads quads(active, w.K, b);
    const QuadRows quad_rows(quads, low_stride);
    const int32_t first_sum = FirstSum(quads);
    const float a = x.step[b] * 16.0f;
    for (size_t n = begin; n < end; n += kAhead) {
      const StepAhead next = ahead.Next(n);
      Asks asks(next, low_stride);
      if (next.view.block_scale != nullptr) PrefetchLines(next.view.block_scale, kAhead, next.first_level);
      size_t at = n;
      for (const size_t stop = std::min(whole_end, n + kAhead); at < stop; at += kOutputs) {
        step.Add(CodebookViewAt(w, b, at), quad_rows, quads, first_sum, a, asks, y + at);
      }
      if (at == whole_end && at < std::min(end, n + kAhead)) padded.Add(step, CodebookViewAt(w, b, at), low_stride, quads, first_sum, a, asks);
      asks.Rest();
    }
  }
  for (size_t n = begin; n < whole_end; n += kOutputs) CodebookStep::Order(y + n);
  padded.Store(y + whole_end);
  ScaleOutputs(w, begin, end - begin, y + begin);
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_CODEBOOK_ROW_INL_H_
