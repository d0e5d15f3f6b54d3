// One block of a matrix of 3 bits times one token's codes, for 64 outputs a 128-bit block of a vector.
//
//   Ask         lines of a later step, asked for four at a time
//   BlockStep   y += a m sums, the sums of integers exact (row-inl.h has the formula)
//
// A stored row is cut into tiles of 32 outputs, 8 bytes of `low` and 4 of `high`. Four rows are interleaved, so that a 32-bit lane has one byte of
// each. A 128-bit block of a vector has one of two tiles, and its eight codes a lane come one after the other:
//
//   vector   0 … 3   4 … 7   8 … 11   12 … 15   16 … 19   20 … 23   24 … 27           28 … 31           outputs of the tile
//   from     low0    low1    low0     low1      high      high      low0, high        low1, high
//   bits     0-2     0-2     3-5      3-5       0-2       3-5       6-7, 6            6-7, 7

#if defined(SOL_CODEBOOK_STEP_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_CODEBOOK_STEP_INL_H_
#undef SOL_CODEBOOK_STEP_INL_H_
#else
#define SOL_CODEBOOK_STEP_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>
#include <type_traits>
#include <utility>

#include "cpu/codebook/decode-inl.h"
#include "cpu/matmul/dot-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Offset of numbers: where four bytes are multiplied at once, one factor is unsigned, so numbers are multiplied plus 128.
constexpr uint8_t kNumberFlip = SOL_BYTE_DOT ? 0x80 : 0;

// sum[i] += numbers[4i … 4i+3] . x[4i … 4i+3], both from -127 to 127.
template <class DI, class VI = hn::Vec<DI>, class VU = hn::Vec<hn::Repartition<uint8_t, DI>>, class VX = hn::Vec<hn::Repartition<int8_t, DI>>>
HWY_INLINE VI DotNumbers(DI di, VU numbers, VX x, VI sum) {
#if SOL_BYTE_DOT
  return DotBytes(di, numbers, x, sum);
#else
  const hn::Repartition<int8_t, DI> d8;
  const VX of_sign = hn::BitCast(d8, numbers);
#if SOL_BYTE_PAIRS
  const hn::Repartition<uint8_t, DI> du;
  const hn::Repartition<int16_t, DI> d16;
  const VX with_sign_of_x = hn::IfNegativeThenNegOrUndefIfZero(x, of_sign);  // 0 times what is undefined is 0
  const auto pairs = hn::SatWidenMulPairwiseAdd(d16, hn::BitCast(du, hn::Abs(x)), with_sign_of_x);  // 2 * 127 * 127 fits
  return hn::Add(sum, hn::WidenMulPairwiseAdd(di, pairs, hn::Set(d16, 1)));
#elif HWY_TARGET_IS_NEON
  return DotSigned(of_sign, x, sum);
#else
  return hn::SumOfMulQuadAccumulate(di, of_sign, x, sum);
#endif
#endif
}

// Start of a block's sums.
HWY_INLINE int32_t FirstSum(const BlockQuads& quads) {
  if (kNumberFlip == 0) return 0;
  int32_t sum = 0;
  for (std::ptrdiff_t i = 0; i < quads.end - quads.row; ++i) sum += quads.code[i];
  return -128 * sum;
}

template <class DI>
HWY_INLINE hn::Vec<hn::Repartition<int8_t, DI>> FourCodes(DI di, const int8_t* code) {
  int32_t codes;
  std::memcpy(&codes, code, sizeof(codes));
  return hn::BitCast(hn::Repartition<int8_t, DI>(), hn::Set(di, codes));
}

// A line of each row of a step ahead, asked for in fours: a burst would fill the queue of outstanding lines.
class Ask {
 public:
  Ask() = default;
  // Of the rows that begin at `from`, the line at `offset`.
  HWY_INLINE Ask(const uint8_t* from, size_t offset, size_t stride, const StepAhead& ahead)
      : from_(from != nullptr ? from + offset : nullptr), stride_(stride), row_(ahead.row), end_(ahead.end), first_level_(ahead.first_level) {}

  HWY_INLINE void Four() {
    if (row_ == end_) return;
    if (first_level_) {
      FourInto(true);
    } else {
      FourInto(false);
    }
    row_ += 4;
  }
  HWY_INLINE void Rest() {
    while (row_ != end_) Four();
  }

 private:
  HWY_INLINE void FourInto(bool first_level) const {
    PrefetchLine(from_ + row_[0] * stride_, first_level);
    PrefetchLine(from_ + row_[1] * stride_, first_level);
    PrefetchLine(from_ + row_[2] * stride_, first_level);
    PrefetchLine(from_ + row_[3] * stride_, first_level);
  }

  const uint8_t* from_ = nullptr;
  size_t stride_ = 0;
  const uint8_t *row_ = nullptr, *end_ = nullptr;
  bool first_level_ = false;
};

// The asks of one step of the cursor ahead; every half of a BlockStep takes one.
class Asks {
 public:
  HWY_INLINE Asks(const StepAhead& ahead, size_t low_stride)
      : asks_{Ask(ahead.view.base, 0, low_stride, ahead), Ask(ahead.view.base, 64, low_stride, ahead), Ask(ahead.view.high, 0, low_stride / 2, ahead),
              Ask()} {}

  HWY_INLINE Ask& Next() { return asks_[next_ < kCount ? next_++ : kCount]; }
  HWY_NOINLINE void Rest() {
    while (next_ < kCount) Next().Rest();
  }

 private:
  static constexpr size_t kCount = 3;
  Ask asks_[kCount + 1];  // the last has nothing to ask for
  size_t next_ = 0;
};

// Bytes of a quarter of 16, with zeros after each, or four times each.
struct Expand {
  alignas(64) uint8_t at[4][16];
  constexpr explicit Expand(bool repeat) : at() {
    for (size_t i = 0; i < 64; ++i) at[i / 16][i % 16] = static_cast<uint8_t>(repeat || i % 4 == 0 ? i / 4 : 0x80);
  }
};

// The bit of a stored byte at which vector i's codes begin; the last two vectors' codes are split.
constexpr int kCodeBegin[8] = {0, 0, 3, 3, 0, 3, 6, 6};

#if HWY_TARGET <= HWY_AVX3_DL
// Look-ups whose index has a code's bits where the stored byte has them. Each place that a code can have has a table of its own:
//
//   0   code in bits 0 to 2, table in bits 3 and 4
//   1   code in bits 3 to 5, table in bits 0 and 1
//   2   low bits of a split code in bits 0 and 1, table in bits 2 and 3, top bit in bit 4 or 5
template <class D8>
class StoredTables {
 public:
  using V = hn::Vec<D8>;

  HWY_INLINE explicit StoredTables(const int8_t* codebook) {
    HWY_ALIGN uint8_t entries[3][64] = {};
    for (size_t i = 0; i < kCodebookSize; ++i) {
      const size_t code = i % 8, table = i / 8, split = code % 4 + table * 4;
      const uint8_t entry = static_cast<uint8_t>(codebook[i]) ^ kNumberFlip;
      entries[0][code + table * 8] = entries[1][code * 8 + table] = entry;
      if (code < 4) entries[2][split] = entry;
      if (code >= 4) entries[2][split + 16] = entries[2][split + 32] = entry;
    }
    for (size_t i = 0; i < 3; ++i) tables_[i] = hn::Load(D8(), entries[i]);
  }

  template <size_t i>
  static HWY_INLINE V Choice(V block_scale) {
    constexpr int kBy = kCodeBegin[i] == 0 ? 3 : kCodeBegin[i] == 3 ? 6 : 4;
    return hn::And(Moved<D8, kBy>(block_scale), hn::Set(D8(), uint8_t{0xC0 >> kBy}));
  }
  template <size_t i>
  HWY_INLINE V LookUp(V bytes, V choice) const {
    return At(tables_[kCodeBegin[i] == 0 ? 0 : 1], hn::OrAnd(choice, bytes, hn::Set(D8(), uint8_t{7 << kCodeBegin[i]})));
  }
  template <size_t i>
  HWY_INLINE V LookUpSplit(V low, V high, V choice) const {
    const V code = hn::OrAnd(choice, Moved<D8, 6>(low), hn::Set(D8(), uint8_t{3}));
    return At(tables_[2], hn::OrAnd(code, Moved<D8, 2>(high), hn::Set(D8(), uint8_t{i == 6 ? 0x10 : 0x20})));
  }

 private:
  static HWY_INLINE V At(V table, V index) { return hn::TableLookupLanes(table, hn::IndicesFromVec(D8(), index)); }

  V tables_[3];
};
#else
// The same by indices that are the code beside its table.
template <class D8>
class StoredTables {
 public:
  using V = hn::Vec<D8>;

  HWY_INLINE explicit StoredTables(const int8_t* codebook) : tables_(codebook, kNumberFlip) {}

  template <size_t i>
  static HWY_INLINE V Choice(V block_scale) {
    return Tables<D8>::Choice(block_scale);
  }
  template <size_t i>
  HWY_INLINE V LookUp(V bytes, V choice) const {
    return tables_.LookUp(Tables<D8>::template Index<7>(choice, kCodeBegin[i] == 0 ? bytes : Moved<D8, 3>(bytes)));
  }
  template <size_t i>
  HWY_INLINE V LookUpSplit(V low, V high, V choice) const {
    const V code = Tables<D8>::template Index<3>(choice, Moved<D8, 6>(low));
    return tables_.LookUp(Tables<D8>::template Index<4>(code, Moved<D8, i - 2>(high)));
  }

 private:
  Tables<D8> tables_;
};
#endif

// Places of the bytes of every second tile in four rows of `high`, 32 bytes each, the rows' next to each other.
struct HighBytes {
  alignas(64) uint8_t at[64];
  constexpr explicit HighBytes(size_t half) : at() {
    for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i % 4 * 32 + i / 16 * 8 + half * 4 + i / 4 % 4);
  }
};

// D8: vectors of 16, 32 or 64 bytes. Sums come in 16 vectors: lane i of 128-bit block b of vector [h][v] is output 64 b + 32 h + 4 v + i. Half h has the
// even or the odd tiles. That is the order of y until Order().
template <class D8>
class BlockStep {
  using D16 = hn::Repartition<uint16_t, D8>;
  using DI = hn::Repartition<int32_t, D8>;
  using DF = hn::Repartition<float, D8>;
  using V = hn::Vec<D8>;
  using V16 = hn::Vec<D16>;
  using VI = hn::Vec<DI>;
  using VX = hn::Vec<hn::Repartition<int8_t, D8>>;
  static constexpr size_t kBytes = hn::MaxLanes(D8()), kBlocks = kBytes / 16, kLanes = kBytes / 4;

 public:
  static constexpr size_t kOutputs = 64 * kBlocks;

  HWY_INLINE explicit BlockStep(const int8_t* codebook) : tables_(codebook) {}

  // Adds one block to kOutputs outputs. `rows` are those of `quads` in `low`. Inlined it would be there twice, and the library has a limit.
  HWY_NOINLINE void Add(const BlockView& v, const QuadRows& rows, const BlockQuads& quads, int32_t first_sum, float a, Asks& asks, float* y) const {
    V scales[2][2];  // block b of scales[h][c] has the bytes of outputs 64 b + 32 h + 16 c …
    for (size_t h = 0; h < 2; ++h) {
      for (size_t c = 0; c < 2; ++c) scales[h][c] = OfBlocks(v.block_scale + 32 * h + 16 * c);
    }
    AddHalf<0>(v, scales[0], rows, quads, first_sum, a, asks.Next(), y);
    AddHalf<1>(v, scales[1], rows, quads, first_sum, a, asks.Next(), y);
  }

  // Brings kOutputs outputs in order.
  static HWY_NOINLINE void Order([[maybe_unused]] float* y) {
    if constexpr (kBlocks > 1) {
      const DI di;
      const DF df;
      VI sums[16];
      for (size_t i = 0; i < 16; ++i) sums[i] = hn::BitCast(di, hn::LoadU(df, y + kLanes * i));
      for (size_t i = 0; i < 16; i += kBlocks) {  // 4 kBlocks outputs of each 64
        VI ordered[kBlocks];
        Transpose(sums + i, ordered);
        for (size_t b = 0; b < kBlocks; ++b) hn::StoreU(hn::BitCast(df, ordered[b]), df, y + 64 * b + 4 * i);
      }
    }
  }

 private:
  static HWY_INLINE void Transpose(const VI* from, VI* to) {
    if constexpr (kBlocks == 2) {
      to[0] = hn::ConcatLowerLower(DI(), from[1], from[0]);
      to[1] = hn::ConcatUpperUpper(DI(), from[1], from[0]);
    }
#if HWY_TARGET <= HWY_AVX3_DL
    if constexpr (kBlocks == 4) TransposeBlocks(DI(), from[0], from[1], from[2], from[3], to[0], to[1], to[2], to[3]);
#endif
  }

  // 16 bytes of each 64.
  static HWY_INLINE V OfBlocks(const uint8_t* from) {
    const hn::Full128<uint8_t> d;
    if constexpr (kBlocks == 1) return hn::LoadU(d, from);
    if constexpr (kBlocks == 2) return hn::Combine(D8(), hn::LoadU(d, from + 64), hn::LoadU(d, from));
    if constexpr (kBlocks == 4) {
      const hn::Half<D8> half;
      const auto pair = [&](const uint8_t* of) HWY_ATTR { return hn::Combine(half, hn::LoadU(d, of + 64), hn::LoadU(d, of)); };
      return hn::Combine(D8(), pair(from + 128), pair(from));
    }
  }

  // Calls f for each of a half's 8 vectors. In a loop, GCC would keep them in memory.
  template <class F>
  static HWY_INLINE void Each(F f) {
    EachOf(f, std::make_index_sequence<8>());
  }
  template <class F, size_t... kIndex>
  static HWY_INLINE void EachOf(F f, std::index_sequence<kIndex...>) {
    (f(std::integral_constant<size_t, kIndex>()), ...);
  }

  // Half of the tiles at a time, so that all that a row takes stays in registers.
  template <size_t kHalf>
  HWY_INLINE void AddHalf(const BlockView& v, const V (&scales)[2], const QuadRows& rows, const BlockQuads& quads, int32_t first_sum, float a, Ask& ask,
                          float* y) const {
    static constexpr Expand kOneOfEach(false), kFourOfEach(true);
    const D8 d8;
    const DI di;
    const DF df;
    const StoredTables<D8> tables = tables_;  // in registers
    V choice[8];
    VI sums[8];
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      choice[i] = hn::TableLookupBytes(StoredTables<D8>::template Choice<i>(scales[i / 4]), hn::LoadDup128(d8, kFourOfEach.at[i % 4]));
      sums[i] = hn::Set(di, first_sum);
    });
    const int8_t* code = quads.code;
    for (const QuadRows::Entry *row = rows.begin(), *end = rows.end(); row != end; row += 4, code += 4) {
      ask.Four();
      const VX x = FourCodes(di, code);
      const size_t at[4] = {rows.Offset(row[0]), rows.Offset(row[1]), rows.Offset(row[2]), rows.Offset(row[3])};
      const V16 low01 = Pair<kHalf>(v.base + at[0], v.base + at[1]), low23 = Pair<kHalf>(v.base + at[2], v.base + at[3]);
      const V low0 = hn::BitCast(d8, hn::InterleaveLower(D16(), low01, low23)), low1 = hn::BitCast(d8, hn::InterleaveUpper(D16(), low01, low23));
      const V high = High<kHalf>(v.high, at);
      AddDot(tables.template LookUp<0>(low0, choice[0]), x, sums[0]);
      AddDot(tables.template LookUp<1>(low1, choice[1]), x, sums[1]);
      AddDot(tables.template LookUp<2>(low0, choice[2]), x, sums[2]);
      AddDot(tables.template LookUp<3>(low1, choice[3]), x, sums[3]);
      AddDot(tables.template LookUp<4>(high, choice[4]), x, sums[4]);
      AddDot(tables.template LookUp<5>(high, choice[5]), x, sums[5]);
      AddDot(tables.template LookUpSplit<6>(low0, high, choice[6]), x, sums[6]);
      AddDot(tables.template LookUpSplit<7>(low1, high, choice[7]), x, sums[7]);
    }
    ask.Rest();
    const auto step = hn::Set(df, a);
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      const V bytes = hn::And(scales[i / 4], hn::Set(d8, uint8_t{63}));
      const VI m = hn::BitCast(di, hn::TableLookupBytesOr0(bytes, hn::LoadDup128(d8, kOneOfEach.at[i % 4])));
      float* to = y + kLanes * (8 * kHalf + i);
      hn::StoreU(hn::MulAdd(hn::Mul(hn::ConvertTo(df, m), step), hn::ConvertTo(df, sums[i]), hn::LoadU(df, to)), df, to);
    });
  }

  // The bytes of a half's tiles in two rows of `low`, in turn.
  template <size_t kHalf>
  static HWY_INLINE V16 Pair(const uint8_t* first, const uint8_t* second) {
    const D8 d8;
    const V a = hn::LoadU(d8, first), b = hn::LoadU(d8, second);
    return hn::BitCast(D16(), kHalf == 0 ? hn::InterleaveLower(d8, a, b) : hn::InterleaveUpper(d8, a, b));
  }

  // The bytes of a half's tiles in four rows of `high`, which are half as far apart as those of `low`.
  template <size_t kHalf>
  static HWY_INLINE V High(const uint8_t* high, const size_t (&at)[4]) {
    const D8 d8;
    const auto row = [&](size_t i) HWY_ATTR __attribute__((always_inline)) { return hn::LoadU(hn::Half<D8>(), high + at[i] / 2); };
#if HWY_TARGET <= HWY_AVX3_DL
    static constexpr HighBytes kHighBytes(kHalf);
    return hn::TwoTablesLookupLanes(d8, hn::Combine(d8, row(1), row(0)), hn::Combine(d8, row(3), row(2)),
                                    hn::IndicesFromVec(d8, hn::Load(d8, kHighBytes.at)));
#else
    const hn::Full128<uint8_t> d;
    const auto pair = [&](size_t i) HWY_ATTR __attribute__((always_inline)) {
      if constexpr (kBlocks == 1) {
        return hn::BitCast(D16(), hn::InterleaveLower(d, hn::ResizeBitCast(d, row(i)), hn::ResizeBitCast(d, row(i + 1))));
      } else {
        return hn::BitCast(D16(), hn::Combine(d8, hn::InterleaveUpper(d, row(i), row(i + 1)), hn::InterleaveLower(d, row(i), row(i + 1))));
      }
    };
    const V16 r01 = pair(0), r23 = pair(2);
    return hn::BitCast(d8, kHalf == 0 ? hn::InterleaveLower(D16(), r01, r23) : hn::InterleaveUpper(D16(), r01, r23));
#endif
  }

  static HWY_INLINE void AddDot(V numbers, VX x, VI& sum) {
#if HWY_TARGET <= HWY_AVX3_DL
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(numbers.raw), "v"(x.raw));  // around DotNumbers GCC would copy the sum twice
#else
    sum = DotNumbers(DI(), numbers, x, sum);
#endif
  }

  StoredTables<D8> tables_;
};

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_CODEBOOK_STEP_INL_H_
