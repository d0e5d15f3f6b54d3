// One token times a matrix: y [N] = x [K] W, for some of the outputs.
//
// With x[k] = a C[k] in every block of 32 channels, C an integer code, and W as common/nested_format.h has it,
//
//   y[n] = sum over blocks of a s/16 (sum over the block's k of (16 q + 4 b + c)[k, n] C[k] - (z + center) sum of C[k])
//
// where a matrix at 4 bits has q alone, at 6 bits q and b, and center is 0, 6.5 or 8. The sums of integers are exact; the rest is float32.
// q, the base, and 4 b + c, the residual planes, are multiplied apart.
//
// The time goes to reading W, so every plane is read once, in the order of memory, and asked for ahead of time.
//
//   RowBlockMajor     base [K/32, N, 16]. A vector of bytes holds the 16 bytes of a block of each of some successive outputs. Its dot product
//                     has four 32-bit lanes an output, and four such vectors add up to one with an output a lane.
//   RowChannelMajor   base [K, N/2]. Only the rows of active channels are read, four at a time (ActiveQuads). A vector of bytes is a piece
//                     of a row, two outputs a byte; interleaved with three other rows, a 32-bit lane holds one byte of each of four channels.
//                     Residual planes, scales and zero points are read for all channels of a block that has an active one.
//
// Results lie one output a lane. W.K is a multiple of 32; outputs past the last whole vector are done on padded copies.

#if defined(SOL_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_ROW_INL_H_
#undef SOL_ROW_INL_H_
#else
#define SOL_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "cpu/matmul/dot-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/views-inl.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// The weights of outputs n, … of block b at 3 bits.
HWY_INLINE BlockView CodebookViewAt(const Nested& w, size_t b, size_t n) {
  const size_t row = b * kBlock;
  return {w.low + row * (w.N / 4) + n / 4, nullptr, nullptr, nullptr, nullptr, w.high + row * (w.N / 8) + n / 8, w.block_scale + b * w.N + n};
}

constexpr size_t kBytesAhead = 8192;  // of prefetching in a block-major matrix

template <int kBits>
HWY_INLINE void RowBlockMajorBits(Nested w, const Activations& x, size_t begin, size_t end, float* y) {
  const hn::ScalableTag<uint8_t> d8;
  using D8 = decltype(d8);
  const hn::Repartition<int32_t, D8> di;
  const hn::Repartition<int8_t, D8> dx;
  constexpr size_t kBytes = hn::MaxLanes(d8);
  constexpr size_t kOutputs = kBytes / 4;
  constexpr size_t kHalves = HalvesAt(kBits);
  const auto nibble = hn::Set(d8, uint8_t{0x0F});
  const size_t blocks = w.K / kBlock, width = end - begin;
  // A run ends at the end of every block, where the hardware's prefetching stops: ours goes on with the next block, and
  // after the last one with the next task.
  constexpr size_t kOutputBytes = 16 + 3 + (kBits > 4 ? 8 : 0) + (kBits > 6 ? 8 : 0);
  const size_t ahead = std::min(width, kBytesAhead / kOutputBytes);
  const bool first_level = AsksFirstLevel();
  const auto prefetch = [&](size_t b, size_t n, size_t outputs) HWY_ATTR __attribute__((always_inline)) {
    size_t at = b * w.N + n + ahead;
    if (n + ahead >= end) at = b + 1 < blocks ? at + w.N - width : n + ahead;
    PrefetchLines(w.base + at * 16, outputs * 16, first_level);
    PrefetchLines(w.scale + at, outputs * 2, first_level);
    PrefetchLines(w.zero + at, outputs, first_level);
    if constexpr (kBits > 4) PrefetchLines(w.plane1 + at * 8, outputs * 8, first_level);
    if constexpr (kBits > 6) PrefetchLines(w.plane2 + at * 8, outputs * 8, first_level);
  };

  std::fill(y + begin, y + end, 0.0f);
  for (size_t b = 0; b < blocks; ++b) {
    hn::Vec<decltype(dx)> even[kHalves], odd[kHalves];
    for (size_t h = 0; h < kHalves; ++h) {
      even[h] = hn::LoadDup128(dx, x.even_odd + h * w.K + b * kBlock);
      odd[h] = hn::LoadDup128(dx, x.even_odd + h * w.K + b * kBlock + 16);
    }
    const BlockScale<decltype(di), kBits> scale(x.step[b], x.sum[b], w.Center());
    const auto quarter = [&](const uint8_t* base) HWY_ATTR {
      const auto packed = hn::LoadU(d8, base);
      BlockSum<decltype(di), kHalves> sum;
      sum.Add(hn::And(packed, nibble), even);
      sum.Add(hn::ShiftRight<4>(packed), odd);
      return sum.ShortTotal();
    };
    const auto dot = [&](const uint8_t* base) HWY_ATTR {
      return SumFours(di, quarter(base), quarter(base + kBytes), quarter(base + 2 * kBytes), quarter(base + 3 * kBytes));
    };
    const Residual<kBits, D8> residual(kBits > 4 ? x.phased + b * kBlock : nullptr, w.K);
    // Inlined into their callers, so that the activations stay in registers.
    const auto total = [&](const BlockView& v, size_t at) HWY_ATTR __attribute__((always_inline)) {
      const auto sums = dot(v.base + at * 16);
      if constexpr (kBits == 4) return sums;
      return hn::Add(hn::ShiftLeft<4>(sums), residual.Dot(v.plane1 + at * 8, kBits > 6 ? v.plane2 + at * 8 : nullptr));
    };
    const auto step = [&](const BlockView& v, float* to) HWY_ATTR __attribute__((always_inline)) {
      scale.Add(total(v, 0), v.scale, v.zero, to);
    };

    size_t n = begin;
#if HWY_TARGET_IS_NEON
    for (; n + 4 * kOutputs <= end; n += 4 * kOutputs) {
      prefetch(b, n, 4 * kOutputs);
      const BlockView v = ViewAt<kBits>(w, w.base + (b * w.N + n) * 16, b, n);
      const hn::Vec<decltype(di)> sums[4] = {total(v, 0), total(v, kOutputs), total(v, 2 * kOutputs), total(v, 3 * kOutputs)};
      scale.AddFour(sums, v.scale, v.zero, y + n);
    }
#endif
    for (; n + kOutputs <= end; n += kOutputs) {
      prefetch(b, n, kOutputs);
      step(ViewAt<kBits>(w, w.base + (b * w.N + n) * 16, b, n), y + n);
    }
    if (n < end) {
      const size_t left = end - n, at = b * w.N + n;
      HWY_ALIGN uint8_t base[kOutputs * 16] = {}, plane1[kOutputs * 8] = {}, plane2[kOutputs * 8] = {};
      HWY_ALIGN uint16_t scales[kOutputs] = {};
      HWY_ALIGN uint8_t zeros[kOutputs] = {};
      HWY_ALIGN float sums[kOutputs] = {};
      std::memcpy(base, w.base + at * 16, left * 16);
      std::memcpy(scales, w.scale + at, left * 2);
      std::memcpy(zeros, w.zero + at, left);
      if (kBits > 4) std::memcpy(plane1, w.plane1 + at * 8, left * 8);
      if (kBits > 6) std::memcpy(plane2, w.plane2 + at * 8, left * 8);
      std::memcpy(sums, y + n, left * sizeof(float));
      step({base, scales, zeros, plane1, plane2}, sums);
      std::memcpy(y + n, sums, left * sizeof(float));
    }
  }
}

inline void RowBlockMajor(const Nested& w, const Activations& x, size_t begin, size_t end, float* y) {
  if (w.bits == 4) return RowBlockMajorBits<4>(w, x, begin, end, y);
  if (w.bits == 6) return RowBlockMajorBits<6>(w, x, begin, end, y);
  RowBlockMajorBits<8>(w, x, begin, end, y);
}

// The quads of one block, see ActiveQuads.
struct BlockQuads {
  BlockQuads(const ActiveQuads& active, size_t K, size_t b)
      : row(active.rows + active.begin[b] * 4), end(active.rows + active.begin[b + 1] * 4),
        code(active.codes + active.begin[b] * 4), stride(K + ActiveQuads::kSlack) {}

  const uint8_t* row;
  const uint8_t* end;
  const int8_t* code;
  size_t stride;  // from the codes of one half to those of the other
};

// A later step, whose weights are asked for while this one is computed: skipped rows defeat the hardware's prefetching.
struct StepAhead {
  BlockView view;
  const uint8_t* row;
  const uint8_t* end;
  size_t stride;     // of the base's rows
  bool first_level;  // the cache to ask into
};

// Outputs of a channel-major matrix that are asked for at a time: as many as a step computes, on Arm a line of every row.
constexpr size_t kAheadOutputs = HWY_TARGET_IS_NEON ? 128 : 2 * HWY_LANES(uint8_t);

// Runs a constant number of bytes ahead of the steps over a range of blocks, `step` outputs at a time.
template <int kBits>
class AheadCursor {
 public:
  AheadCursor(const Nested& w, const ChannelRows<kBits>& rows, const ActiveQuads& active, size_t first_block, size_t end_block, size_t begin, size_t end,
              size_t step)
      : w_(w), rows_(rows), active_(active), first_block_(first_block), block_(first_block), end_block_(end_block), begin_(begin),
        end_(std::min(end, begin + rows.Width())), last_(end), step_(step), n_(begin) {
    size_t filled = 0;
    if (!w.in_order) {
      for (size_t b = first_block; b < end_block; ++b) filled += Empty(b) ? 0 : 1;
    }
    if (filled == 0) {
      block_ = end_block_;
      return;
    }
    SkipEmpty();
    const size_t filled_rows = 4 * (active.begin[end_block] - active.begin[first_block]) / filled;
    constexpr size_t kRest = (kBits == 3 ? 1 : 3) + (kBits > 4 ? 8 : 0) + (kBits > 6 ? 8 : 0);
    const bool sparse = filled_rows < kBlock * 3 / 4;
    const size_t bytes = kBits == 3 ? step * (filled_rows * 3 / 8 + kRest) : step * (filled_rows / 2 + kRest);
    const size_t ahead = prefetching.row_bytes.load(std::memory_order_relaxed);
    for (size_t i = (ahead + bytes - 1) / bytes; i > 0 && block_ < end_block_; --i) {
      if (sparse) AskAll();  // nobody could ask for these before: Fetch knows no active rows
      Move();
    }
  }

  // The step ahead of the reader's at output `n`; none for the narrower steps that share the last one.
  StepAhead Next(size_t n) {
    if (block_ == end_block_ || (n - begin_) % step_ != 0) return {};
    const StepAhead result = Here();
    Move();
    return result;
  }

 private:
  StepAhead Here() const {
    const size_t b = block_;
    const BlockQuads quads(active_, w_.K, b);
    if constexpr (kBits == 3) return {CodebookViewAt(w_, b, n_), quads.row, quads.end, 0, AsksFirstLevel()};
    const BlockPlace place = rows_.At(b, n_);
    return {rows_.View(place, b, n_), quads.row, quads.end, place.stride, rows_.FirstLevel()};
  }
  void AskAll() const {
    const StepAhead here = Here();
    if constexpr (kBits == 3) {
      for (const uint8_t* row = here.row; row != here.end; ++row) {
        PrefetchLines(here.view.base + *row * (w_.N / 4), step_ / 4);
        PrefetchLines(here.view.high + *row * (w_.N / 8), step_ / 8);
      }
      PrefetchLines(here.view.block_scale, step_);
      return;
    }
    for (const uint8_t* row = here.row; row != here.end; ++row) PrefetchLine(here.view.base + *row * here.stride);
    PrefetchLines(here.view.scale, step_ * 2);
    PrefetchLines(here.view.zero, step_);
    if constexpr (kBits > 4) PrefetchLines(here.view.plane1, step_ * 8);
    if constexpr (kBits > 6) PrefetchLines(here.view.plane2, step_ * 8);
  }
  bool Empty(size_t b) const { return active_.begin[b] == active_.begin[b + 1]; }
  void SkipEmpty() {
    while (block_ < end_block_ && Empty(block_)) ++block_;
  }
  void Move() {
    n_ += step_;
    if (n_ < end_) return;
    n_ = begin_;
    ++block_;
    SkipEmpty();
    if (block_ < end_block_ || end_ == last_) return;
    begin_ = n_ = end_;
    end_ = std::min(last_, end_ + rows_.Width());
    block_ = first_block_;
    SkipEmpty();
  }

  const Nested& w_;
  const ChannelRows<kBits>& rows_;
  const ActiveQuads& active_;
  const size_t first_block_;
  size_t block_;  // where it is
  const size_t end_block_;
  size_t begin_, end_;  // outputs of the range
  const size_t last_, step_;
  size_t n_;
};

// The rows of a block's quads. On Arm as distances from the block's first row: its loads add such a number to an address, but multiply none.
class QuadRows {
 public:
  QuadRows(const BlockQuads& quads, size_t stride) : stride_(stride) {
#if HWY_TARGET_IS_NEON
    Entry* to = offsets_;
    for (const uint8_t* row = quads.row; row != quads.end; ++row) *to++ = *row * stride;
    end_ = to;
#else
    begin_ = quads.row;
    end_ = quads.end;
#endif
  }

#if HWY_TARGET_IS_NEON
  using Entry = size_t;
  HWY_INLINE const Entry* begin() const { return offsets_; }
  HWY_INLINE size_t Offset(Entry entry) const { return entry; }
#else
  using Entry = uint8_t;
  HWY_INLINE const Entry* begin() const { return begin_; }
  HWY_INLINE size_t Offset(Entry entry) const { return entry * stride_; }
#endif
  HWY_INLINE const Entry* end() const { return end_; }
  HWY_INLINE size_t Stride() const { return stride_; }

 private:
  const size_t stride_;
  const Entry* end_;
#if HWY_TARGET_IS_NEON
  Entry offsets_[kBlock];
#else
  const Entry* begin_;
#endif
};

// One block of a channel-major matrix for 2 * kVectors * lanes(D8) outputs. `base` points at the outputs' byte in the block's first
// row; with kPartial only `bytes` bytes of a row are the outputs' own. Asks for `ahead` where kAsk says so. Its parts are inlined: called, they would
// keep the sums in memory.
template <int kBits, bool kPartial, bool kAsk, size_t kVectors, class D8>
HWY_INLINE void ChannelMajorStep(D8 d8, const BlockView& v, const QuadRows& rows, size_t bytes, const BlockQuads& quads, StepAhead ahead,
                                 const int8_t* phased, size_t K, const BlockScale<hn::Repartition<int32_t, D8>, kBits>& scale,
                                 float* y) {
  const hn::Repartition<int32_t, D8> di;
  const hn::Repartition<int8_t, D8> dx;
  using VI = hn::Vec<decltype(di)>;
  constexpr size_t kHalves = HalvesAt(kBits);
  [[maybe_unused]] const auto nibble = hn::Set(d8, uint8_t{0x0F});
  const uint8_t* base = v.base;
#if HWY_TARGET_IS_NEON
  __asm__("" : "+r"(base));  // as one number, not the sum of two for every row
#endif
  const auto load = [&](QuadRows::Entry row, hn::Vec<D8>(&to)[kVectors]) HWY_ATTR __attribute__((always_inline)) {
    const uint8_t* from = base + rows.Offset(row);
    if constexpr (kPartial) {
      to[0] = hn::LoadN(d8, from, bytes);
    } else {
#if HWY_TARGET_IS_NEON
      __asm__("" : "+r"(from));  // as one address, so that one instruction loads two vectors
#endif
      for (size_t j = 0; j < kVectors; ++j) to[j] = hn::LoadU(d8, from + j * hn::MaxLanes(d8));
    }
  };
  const bool first_level = ahead.first_level;
  const auto ask = [&]() HWY_ATTR __attribute__((always_inline)) {
    for (size_t i = 0; i < 4; ++i) PrefetchLine(ahead.view.base + ahead.row[i] * ahead.stride, first_level);
    ahead.row += 4;
  };
  // Two halves of activations take twice the sums, more than AVX2 and older have registers: some of the outputs first, then the others. With
  // AVX-VNNI that would take longer than to keep some sums in memory.
  constexpr size_t kPasses = SOL_BYTE_PAIRS && HWY_TARGET > HWY_AVX3 && kHalves == 2 ? 2 : 1, kEach = 4 / kPasses;
  VI low[kVectors][4], high[kVectors][4], sums[kVectors * 8];
  const auto multiply = [&](auto pass) HWY_ATTR __attribute__((always_inline)) {
    constexpr size_t kFirst = decltype(pass)::value * kEach;
    BlockSum<decltype(di), kHalves> even[kVectors][kEach], odd[kVectors][kEach];
    const int8_t* code = quads.code;
    for (const QuadRows::Entry *row = rows.begin(), *end = rows.end(); row != end; row += 4, code += 4) {
      if (kAsk && ahead.row != ahead.end) ask();
      hn::Vec<decltype(dx)> x[kHalves];
      for (size_t h = 0; h < kHalves; ++h) {
        int32_t codes;
        std::memcpy(&codes, code + h * quads.stride, sizeof(codes));
        x[h] = hn::BitCast(dx, hn::Set(di, codes));
      }
      hn::Vec<D8> r[4][kVectors];
      for (size_t i = 0; i < 4; ++i) load(row[i], r[i]);
      for (size_t j = 0; j < kVectors; ++j) {
        hn::Vec<D8> q[4];
        InterleaveRows(d8, r[0][j], r[1][j], r[2][j], r[3][j], q[0], q[1], q[2], q[3]);
#if SOL_ADDS_BYTES
        for (size_t i = 0; i < kEach; ++i) even[j][i].AddBytes(q[kFirst + i], x);  // with 16 times the high nibbles, for now
#else
        for (size_t i = 0; i < kEach; ++i) even[j][i].Add(hn::And(q[kFirst + i], nibble), x);
#endif
        for (size_t i = 0; i < kEach; ++i) odd[j][i].Add(hn::ShiftRight<4>(q[kFirst + i]), x);
      }
    }
    for (size_t j = 0; j < kVectors; ++j) {
      for (size_t i = 0; i < kEach; ++i) {
        low[j][kFirst + i] = even[j][i].Total();
        high[j][kFirst + i] = odd[j][i].Total();
#if SOL_ADDS_BYTES
        low[j][kFirst + i] = hn::Sub(low[j][kFirst + i], hn::ShiftLeft<4>(high[j][kFirst + i]));
#endif
      }
    }
  };
  multiply(std::integral_constant<size_t, 0>());
  if constexpr (kPasses == 2) multiply(std::integral_constant<size_t, 1>());
  while (kAsk && ahead.row != ahead.end) ask();
  constexpr size_t kOutputs = hn::MaxLanes(di);
  for (size_t j = 0; j < kVectors; ++j) {
    VI ordered[8];
    OrderOutputs(di, low[j], high[j], ordered);
    for (size_t p = 0; p < 8; ++p) sums[8 * j + p] = ordered[p];
  }
  const auto add_residual = [&](const Residual<kBits, D8>& residual, size_t p) HWY_ATTR __attribute__((always_inline)) {
    if constexpr (kBits > 4) {
      const size_t at = p * kOutputs;
      const uint8_t* plane2 = kBits > 6 ? v.plane2 + at * 8 : nullptr;
      sums[p] = hn::Add(hn::ShiftLeft<4>(sums[p]), residual.Dot(v.plane1 + at * 8, plane2));
    }
  };
#if HWY_TARGET_IS_NEON
  const Residual<kBits, D8> residual(phased, K);
  constexpr size_t kGroups = 2 * kVectors, kGroupAhead = kAheadOutputs / kGroups;  // outputs asked for at a time
  for (size_t g = 0; g < kGroups; ++g) {
    if (kAsk && ahead.view.scale != nullptr) {  // bit by bit: a burst would fill the queue of outstanding lines
      const size_t at = g * kGroupAhead;
      PrefetchLines(ahead.view.scale + at, kGroupAhead * 2, first_level);
      if (at % 64 == 0) PrefetchLines(ahead.view.zero + at, 64, first_level);
      if constexpr (kBits > 4) PrefetchLines(ahead.view.plane1 + at * 8, kGroupAhead * 8, first_level);
      if constexpr (kBits > 6) PrefetchLines(ahead.view.plane2 + at * 8, kGroupAhead * 8, first_level);
    }
    for (size_t p = 4 * g; p < 4 * g + 4; ++p) add_residual(residual, p);
    const size_t at = 4 * g * kOutputs;
    scale.AddFour(sums + 4 * g, v.scale + at, v.zero + at, y + at);
  }
#else
  for (size_t p = 0; p < 8 * kVectors; ++p) {
    const size_t at = p * kOutputs;
    if (kAsk && ahead.view.scale != nullptr) {  // bit by bit: a burst would fill the queue of outstanding lines
      if (p % 2 == 0) PrefetchLines(ahead.view.scale + at, 4 * kOutputs, first_level);
      if (p % 4 == 0) PrefetchLines(ahead.view.zero + at, 4 * kOutputs, first_level);
      if constexpr (kBits > 4) PrefetchLines(ahead.view.plane1 + at * 8, kOutputs * 8, first_level);
      if constexpr (kBits > 6) PrefetchLines(ahead.view.plane2 + at * 8, kOutputs * 8, first_level);
    }
    add_residual(Residual<kBits, D8>(phased, K), p);
    scale.Add(sums[p], v.scale + at, v.zero + at, y + at);
  }
#endif
}

// Steps of one vector size over [n, end), as many as fit; returns the first output that is left.
template <int kBits, size_t kVectors, class D8>
HWY_INLINE size_t ChannelMajorSteps(D8 d8, const Nested& w, const ChannelRows<kBits>& rows, const Activations& x, const ActiveQuads& active, size_t b,
                                    size_t n, size_t end, AheadCursor<kBits>& ahead, float* y) {
  constexpr size_t kOutputs = 2 * kVectors * hn::MaxLanes(d8);
  if (n + kOutputs > end) return n;
  const BlockScale<hn::Repartition<int32_t, D8>, kBits> scale(x.step[b], x.sum[b], w.Center());
  const BlockQuads quads(active, w.K, b);
  BlockPlace place = rows.At(b, n);
  const QuadRows quad_rows(quads, place.stride);
  const auto step = [&](auto ask, size_t at, const StepAhead& next) HWY_ATTR __attribute__((always_inline)) {
    ChannelMajorStep<kBits, false, decltype(ask)::value, kVectors>(d8, rows.View(place, b, at), quad_rows, 0, quads, next, x.phased + b * kBlock, w.K,
                                                                  scale, y + at);
    place = {place.base + kOutputs / 2, place.scale + kOutputs, place.zero + kOutputs, place.stride};
  };
  // A step that asks for more outputs than it computes is followed by others that ask for none.
  if constexpr (kOutputs < kAheadOutputs && HWY_TARGET_IS_NEON) {
    for (; n + kAheadOutputs <= end; n += kAheadOutputs) {
      step(std::true_type(), n, ahead.Next(n));
      for (size_t at = kOutputs; at < kAheadOutputs; at += kOutputs) step(std::false_type(), n + at, {});
    }
  }
  for (; n + kOutputs <= end; n += kOutputs) step(std::true_type(), n, ahead.Next(n));
  return n;
}

template <int kBits>
HWY_INLINE void RowChannelMajorBits(Nested w, const Activations& x, const ActiveQuads& active, size_t first_block,
                                    size_t end_block, size_t begin, size_t end, float* y) {
  const hn::ScalableTag<uint8_t> wide;
  const hn::CappedTag<uint8_t, 32> half;
  const hn::Full128<uint8_t> narrow;
  constexpr size_t kVectors = HWY_TARGET_IS_NEON && HalvesAt(kBits) == 1 ? 2 : 1;  // the registers hold so many rows of sums
  const ChannelRows<kBits> rows(w, first_block, end_block, begin, end);
  AheadCursor<kBits> ahead(w, rows, active, first_block, end_block, begin, end, kAheadOutputs);
  const size_t blocks = end_block - first_block, ranges = (end - begin + rows.Width() - 1) / rows.Width();
  for (size_t i = 0; i < ranges * blocks; ++i) {
    const size_t b = first_block + i % blocks, from = begin + i / blocks * rows.Width(), to = std::min(end, from + rows.Width());
    if (active.begin[b] == active.begin[b + 1]) continue;
    size_t n = ChannelMajorSteps<kBits, kVectors>(wide, w, rows, x, active, b, from, to, ahead, y);
    if constexpr (hn::MaxLanes(wide) > hn::MaxLanes(half)) {
      n = ChannelMajorSteps<kBits, 1>(half, w, rows, x, active, b, n, to, ahead, y);
    }
    if constexpr (hn::MaxLanes(half) > hn::MaxLanes(narrow) || kVectors > 1) {
      n = ChannelMajorSteps<kBits, 1>(narrow, w, rows, x, active, b, n, to, ahead, y);
    }
    if (n < to) {
      constexpr size_t kOutputs = 32;
      const BlockPlace place = rows.At(b, n);
      const size_t left = to - n, at = b * w.N + n;
      HWY_ALIGN uint8_t plane1[kOutputs * 8] = {}, plane2[kOutputs * 8] = {};
      HWY_ALIGN uint16_t scales[kOutputs] = {};
      HWY_ALIGN uint8_t zeros[kOutputs] = {};
      HWY_ALIGN float sums[kOutputs] = {};
      std::memcpy(scales, place.scale, left * 2);
      std::memcpy(zeros, place.zero, left);
      if (kBits > 4) std::memcpy(plane1, w.plane1 + at * 8, left * 8);
      if (kBits > 6) std::memcpy(plane2, w.plane2 + at * 8, left * 8);
      std::memcpy(sums, y + n, left * sizeof(float));
      const BlockScale<hn::Repartition<int32_t, decltype(narrow)>, kBits> scale(x.step[b], x.sum[b], w.Center());
      const BlockQuads quads(active, w.K, b);
      ChannelMajorStep<kBits, true, false, 1>(narrow, {place.base, scales, zeros, plane1, plane2}, QuadRows(quads, place.stride), left / 2, quads, {},
                                       x.phased + b * kBlock, w.K, scale, sums);
      std::memcpy(y + n, sums, left * sizeof(float));
    }
  }
}

inline void RowChannelMajor(const Nested& w, const Activations& x, const ActiveQuads& active, size_t first_block,
                            size_t end_block, size_t begin, size_t end, float* y) {
  if (w.bits == 4) return RowChannelMajorBits<4>(w, x, active, first_block, end_block, begin, end, y);
  if (w.bits == 6) return RowChannelMajorBits<6>(w, x, active, first_block, end_block, begin, end, y);
  RowChannelMajorBits<8>(w, x, active, first_block, end_block, begin, end, y);
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_ROW_INL_H_
