// One token times a matrix of 3 bits: y [N] = x [K] W, for some of the outputs.
//
// With x[k] = a C[k] in every block of 32 channels, C an integer code, and W as common/nested_format.h has it,
//
//   y[n] = s[n] sum over blocks of a m (sum over the block's k of codebook[t][code[k, n]] C[k])
//
// The sums of integers are exact; the rest is float32. Only the rows of active channels are read, four at a time (ActiveQuads), and asked for
// ahead of time, 512 outputs at once: a line of every row of `high`, two of `low`.
//
//   WideStep      256 outputs in vectors of 64 bytes, where one instruction looks up 64 indices
//   NarrowStep    32 outputs, on every processor

#if defined(SOL_CODEBOOK_ROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_CODEBOOK_ROW_INL_H_
#undef SOL_CODEBOOK_ROW_INL_H_
#else
#define SOL_CODEBOOK_ROW_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
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

// Where four bytes are multiplied at once, one factor is unsigned: there numbers are multiplied plus 128.
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

// What a block's sums begin with.
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

// y += a m sums, for a vector of outputs in order.
template <class DI>
HWY_INLINE void AddScaled(DI di, hn::Vec<DI> sums, const uint8_t* block_scale, float a, float* y) {
  const hn::Rebind<float, DI> df;
  const auto m = hn::And(hn::PromoteTo(di, hn::LoadU(hn::Rebind<uint8_t, DI>(), block_scale)), hn::Set(di, 63));
  const auto scale = hn::Mul(hn::ConvertTo(df, m), hn::Set(df, a));
  hn::StoreU(hn::MulAdd(scale, hn::ConvertTo(df, sums), hn::LoadU(df, y)), df, y);
}

// A line of each row of a step ahead, asked for in fours: a burst would fill the queue of outstanding lines.
class Ask {
 public:
  HWY_INLINE Ask(const uint8_t* from, size_t stride, const StepAhead& ahead, bool first_level)
      : from_(from), stride_(stride), row_(ahead.row), end_(ahead.end), first_level_(first_level) {}

  HWY_INLINE bool Left() const { return row_ != end_; }
  HWY_INLINE void Four() {
    if (row_ == end_) return;
    for (size_t i = 0; i < 4; ++i) PrefetchLine(from_ + row_[i] * stride_, first_level_);
    row_ += 4;
  }

 private:
  const uint8_t* from_;
  size_t stride_;
  const uint8_t *row_, *end_;
  bool first_level_;
};

#if HWY_TARGET <= HWY_AVX3_DL
// Bytes of a quarter of 16, with zeros behind each, or four times each.
struct Expand {
  alignas(64) uint8_t at[4][16];
  constexpr explicit Expand(bool repeat) : at() {
    for (size_t i = 0; i < 64; ++i) at[i / 16][i % 16] = static_cast<uint8_t>(repeat || i % 4 == 0 ? i / 4 : 0x80);
  }
};

// Where in four rows of `high`, 32 bytes each, the bytes of every second tile are, the rows' next to each other.
struct HighBytes {
  alignas(64) uint8_t at[64];
  constexpr explicit HighBytes(size_t half) : at() {
    for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i % 4 * 32 + i / 16 * 8 + half * 4 + i / 4 % 4);
  }
};

// 256 outputs, whose sums come in 16 vectors: lane i of 128-bit block b of vector [h][v] is output 64 b + 32 h + 4 v + i. That is the order of y until
// Order(). A half h has the even or the odd tiles. A look-up takes an index from six bits of a byte, and there are tables for the three places that
// a code can have in a stored byte, so most codes need no shift:
//
//   tables_[0]   code in bits 0 to 2, table in bits 3 and 4
//   tables_[1]   code in bits 3 to 5, table in bits 0 and 1
//   tables_[2]   low bits of the code in bits 0 and 1, table in bits 2 and 3, top bit of the code in bit 4 or 5
class WideStep {
  using D8 = hn::ScalableTag<uint8_t>;
  using DHalf = hn::Half<D8>;
  using D16 = hn::Repartition<uint16_t, D8>;
  using D32 = hn::Repartition<uint32_t, D8>;
  using DI = hn::Repartition<int32_t, D8>;
  using DF = hn::Repartition<float, D8>;
  using V = hn::Vec<D8>;
  using V32 = hn::Vec<D32>;
  using VI = hn::Vec<DI>;
  using VX = hn::Vec<hn::Repartition<int8_t, D8>>;

 public:
  static constexpr size_t kOutputs = 4 * hn::MaxLanes(D8());
  static_assert(kOutputs == 256, "vectors of 64 bytes");

  HWY_INLINE explicit WideStep(const int8_t* codebook) {
    HWY_ALIGN uint8_t entries[3][64] = {};
    for (size_t i = 0; i < kCodebookSize; ++i) {
      const size_t code = i % 8, table = i / 8, low = code % 4 + table * 4;
      const uint8_t entry = static_cast<uint8_t>(codebook[i]) ^ kNumberFlip;
      entries[0][code + table * 8] = entries[1][code * 8 + table] = entry;
      if (code < 4) {
        entries[2][low] = entry;
      } else {
        entries[2][low + 16] = entries[2][low + 32] = entry;
      }
    }
    for (size_t i = 0; i < 3; ++i) tables_[i] = hn::Load(D8(), entries[i]);
  }

  // Adds one block to 256 outputs.
  HWY_INLINE void Add(const BlockView& v, size_t low_stride, const BlockQuads& quads, int32_t first_sum, float a, const Ask& first, const Ask& second,
                      float* y) const {
    const D8 d8;
    const D32 d32;
    V32 by_64[4], by_16[4];  // block b of by_16[c] has outputs 64 b + 16 c …
    for (size_t b = 0; b < 4; ++b) by_64[b] = hn::BitCast(d32, hn::LoadU(d8, v.block_scale + 64 * b));
    TransposeBlocks(d32, by_64[0], by_64[1], by_64[2], by_64[3], by_16[0], by_16[1], by_16[2], by_16[3]);
    const VI start = hn::Set(DI(), first_sum);
    const auto step = hn::Set(DF(), a);
    AddHalf<0>(v, by_16[0], by_16[1], low_stride, quads, start, step, first, y);
    AddHalf<1>(v, by_16[2], by_16[3], low_stride, quads, start, step, second, y);
  }

  // Brings 256 outputs in order.
  static HWY_INLINE void Order(float* y) {
    const DI di;
    const DF df;
    VI sums[16];
    for (size_t i = 0; i < 16; ++i) sums[i] = hn::BitCast(di, hn::LoadU(df, y + 16 * i));
    for (size_t c = 0; c < 4; ++c) {  // 16 outputs of each 64
      VI ordered[4];
      TransposeBlocks(di, sums[4 * c], sums[4 * c + 1], sums[4 * c + 2], sums[4 * c + 3], ordered[0], ordered[1], ordered[2], ordered[3]);
      for (size_t b = 0; b < 4; ++b) hn::StoreU(hn::BitCast(df, ordered[b]), df, y + 64 * b + 16 * c);
    }
  }

 private:
  // Calls f for each of a half's 8 vectors of sums. In a loop, GCC would keep them in memory.
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
  HWY_INLINE void AddHalf(const BlockView& v, V32 block_scale0, V32 block_scale1, size_t low_stride, const BlockQuads& quads, VI start,
                          hn::Vec<DF> step, Ask ask, float* y) const {
    static constexpr Expand kOneOfEach(false), kFourOfEach(true);
    static constexpr HighBytes kHighBytes(kHalf);
    const D8 d8;
    const D16 d16;
    const DI di;
    const DF df;
    // Which table, as the indices have it, a byte of every row.
    V choice[8];
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      const V bytes = hn::BitCast(d8, i < 4 ? block_scale0 : block_scale1);
      V bits;
      if constexpr (kTableOf[i] == 0) bits = hn::And(Moved<3>(bytes), hn::Set(d8, uint8_t{0x18}));
      if constexpr (kTableOf[i] == 1) bits = hn::And(Moved<6>(bytes), hn::Set(d8, uint8_t{0x03}));
      if constexpr (kTableOf[i] == 2) bits = hn::And(Moved<4>(bytes), hn::Set(d8, uint8_t{0x0C}));
      choice[i] = hn::TableLookupBytes(bits, hn::LoadDup128(d8, kFourOfEach.at[i % 4]));
    });
    VI sums[8];
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) { sums[i] = start; });
    const auto high_bytes = hn::IndicesFromVec(d8, hn::Load(d8, kHighBytes.at));
    const int8_t* code = quads.code;
    for (const uint8_t* row = quads.row; row != quads.end; row += 4, code += 4) {
      ask.Four();
      const VX x = FourCodes(di, code);
      const size_t offset0 = row[0] * low_stride, offset1 = row[1] * low_stride, offset2 = row[2] * low_stride, offset3 = row[3] * low_stride;
      const auto pair = [&](size_t a, size_t b) HWY_ATTR __attribute__((always_inline)) {
        const V first = hn::LoadU(d8, v.base + a), second = hn::LoadU(d8, v.base + b);
        return hn::BitCast(d16, kHalf == 0 ? hn::InterleaveLower(d8, first, second) : hn::InterleaveUpper(d8, first, second));
      };
      const auto r01 = pair(offset0, offset1), r23 = pair(offset2, offset3);
      const V low0 = hn::BitCast(d8, hn::InterleaveLower(d16, r01, r23)), low1 = hn::BitCast(d8, hn::InterleaveUpper(d16, r01, r23));
      const auto highs = [&](size_t a, size_t b) HWY_ATTR __attribute__((always_inline)) {
        return hn::Combine(d8, hn::LoadU(DHalf(), v.high + b / 2), hn::LoadU(DHalf(), v.high + a / 2));
      };
      const V high = hn::TwoTablesLookupLanes(d8, highs(offset0, offset1), highs(offset2, offset3), high_bytes);
      AddDot(LookUp<0>(low0, choice), x, sums[0]);
      AddDot(LookUp<1>(low1, choice), x, sums[1]);
      AddDot(LookUp<2>(low0, choice), x, sums[2]);
      AddDot(LookUp<3>(low1, choice), x, sums[3]);
      AddDot(LookUp<4>(high, choice), x, sums[4]);
      AddDot(LookUp<5>(high, choice), x, sums[5]);
      const V tops = Moved<2>(high);
      AddDot(LookUpSplit<6, 0x10>(Moved<6>(low0), tops, choice), x, sums[6]);
      AddDot(LookUpSplit<7, 0x20>(Moved<6>(low1), tops, choice), x, sums[7]);
    }
    while (ask.Left()) ask.Four();
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      const V bytes = hn::And(hn::BitCast(d8, i < 4 ? block_scale0 : block_scale1), hn::Set(d8, uint8_t{63}));
      const V scale = hn::TableLookupBytesOr0(bytes, hn::LoadDup128(d8, kOneOfEach.at[i % 4]));
      const auto factor = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, scale)), step);
      float* to = y + 16 * (8 * kHalf + i);
      hn::StoreU(hn::MulAdd(factor, hn::ConvertTo(df, sums[i]), hn::LoadU(df, to)), df, to);
    });
  }

  static constexpr size_t kTableOf[8] = {0, 0, 1, 1, 0, 1, 2, 2};

  // The numbers of vector i of a half, from the bytes that have its codes.
  template <size_t i>
  HWY_INLINE V LookUp(V bytes, const V (&choice)[8]) const {
    constexpr uint8_t kCode = kTableOf[i] == 0 ? 0x07 : 0x38;
    return hn::TableLookupLanes(tables_[kTableOf[i]], Index(bytes, kCode, choice[i]));
  }
  // The same from bytes with the codes' low bits, and others with their top bits.
  template <size_t i, uint8_t kTop>
  HWY_INLINE V LookUpSplit(V low, V tops, const V (&choice)[8]) const {
    const V code{_mm512_ternarylogic_epi64(low.raw, hn::Set(D8(), uint8_t{0x03}).raw, choice[i].raw, 0xEA)};
    return hn::TableLookupLanes(tables_[2], Index(tops, kTop, code));
  }
  static HWY_INLINE hn::Indices512<uint8_t> Index(V bytes, uint8_t mask, V rest) { return hn::IndicesFromVec(D8(), hn::OrAnd(rest, bytes, hn::Set(D8(), mask))); }
  // DotNumbers, around which GCC would copy the sum twice.
  static HWY_INLINE void AddDot(V numbers, VX x, VI& sum) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(numbers.raw), "v"(x.raw));
  }
  template <int kBits>
  static HWY_INLINE V Moved(V bytes) {
    return hn::BitCast(D8(), hn::ShiftRight<kBits>(hn::BitCast(D16(), bytes)));
  }

  V tables_[3];
};
#endif

template <class D8>
class NarrowStep {
  using DI = hn::Repartition<int32_t, D8>;
  using Codes = CodeTile<D8>;

 public:
  static constexpr size_t kOutputs = kCodeTile;

  HWY_INLINE explicit NarrowStep(const int8_t* codebook) : tables_(codebook, kNumberFlip) {}

  // Adds one block to 32 outputs.
  HWY_INLINE void Add(const BlockView& v, size_t low_stride, const BlockQuads& quads, int32_t first_sum, float a, float* y) const {
    const DI di;
    const Codes codes(v.block_scale);
    hn::Vec<DI> sums[4][Codes::kPieces];
    for (auto& field : sums) {
      for (auto& sum : field) sum = hn::Set(di, first_sum);
    }
    const int8_t* code = quads.code;
    for (const uint8_t* row = quads.row; row != quads.end; row += 4, code += 4) {
      const uint8_t *low[4], *high[4];
      for (size_t i = 0; i < 4; ++i) {
        const size_t offset = row[i] * low_stride;
        low[i] = v.base + offset;
        high[i] = v.high + offset / 2;
      }
      hn::Vec<D8> numbers[4][Codes::kPieces];
      codes.Decode(tables_, low, high, numbers);
      const auto x = FourCodes(di, code);
      for (size_t f = 0; f < 4; ++f) {
        for (size_t p = 0; p < Codes::kPieces; ++p) sums[f][p] = DotNumbers(di, numbers[f][p], x, sums[f][p]);
      }
    }
    for (size_t f = 0; f < 4; ++f) {
      for (size_t p = 0; p < Codes::kPieces; ++p) {
        const size_t at = 8 * f + p * Codes::kOutputs;
        AddScaled(di, sums[f][p], v.block_scale + at, a, y + at);
      }
    }
  }

 private:
  Tables<D8> tables_;
};

inline void RowCodebook(const Nested& w, const Activations& x, const ActiveQuads& active, size_t first_block, size_t end_block, size_t begin,
                        size_t end, float* y) {
  constexpr size_t kAhead = 512;  // outputs that are asked for at a time
  const hn::CappedTag<uint8_t, 32> narrow;
  const NarrowStep<decltype(narrow)> tile(w.codebook);
#if HWY_TARGET <= HWY_AVX3_DL
  constexpr size_t kWide = WideStep::kOutputs;
  const WideStep wide(w.codebook);
#endif
  const size_t low_stride = w.N / 4;
  const bool first_level = AsksFirstLevel();
  const ChannelRows<3> rows(w, first_block, end_block, begin, end);
  AheadCursor<3> ahead(w, rows, active, first_block, end_block, begin, end, kAhead);
  for (size_t b = first_block; b < end_block; ++b) {
    if (active.begin[b] == active.begin[b + 1]) continue;
    const BlockQuads quads(active, w.K, b);
    const int32_t first_sum = FirstSum(quads);
    const float a = x.step[b] * 16.0f;
    for (size_t n = begin; n < end; n += kAhead) {
      const StepAhead next = ahead.Next(n);
      const uint8_t* low = next.view.base;
      Ask low0(low, low_stride, next, first_level), low1(low != nullptr ? low + 64 : nullptr, low_stride, next, first_level);
      Ask high(next.view.high, low_stride / 2, next, first_level);
      if (next.view.block_scale != nullptr) PrefetchLines(next.view.block_scale, kAhead, first_level);
      size_t at = n;
      const size_t stop = std::min(end, n + kAhead);
#if HWY_TARGET <= HWY_AVX3_DL
      if (at + kWide <= stop) {
        wide.Add(CodebookViewAt(w, b, at), low_stride, quads, first_sum, a, low0, low1, y + at);
        low0 = low1 = Ask(nullptr, 0, {}, false);  // done
        at += kWide;
      }
      if (at + kWide <= stop) {
        wide.Add(CodebookViewAt(w, b, at), low_stride, quads, first_sum, a, high, low0, y + at);
        continue;
      }
#endif
      for (; at < stop; at += kCodeTile) {
        low0.Four();
        low1.Four();
        high.Four();
        tile.Add(CodebookViewAt(w, b, at), low_stride, quads, first_sum, a, y + at);
      }
      while (high.Left()) {
        low0.Four();
        low1.Four();
        high.Four();
      }
    }
  }
#if HWY_TARGET <= HWY_AVX3_DL
  for (size_t n = begin; n + kWide <= end; n += kWide) WideStep::Order(y + n);
#endif
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  for (size_t n = begin; n < end; n += hn::MaxLanes(df)) {
    const auto s = hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, w.output_scale + n)));
    hn::StoreU(hn::Mul(s, hn::LoadU(df, y + n)), df, y + n);
  }
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_CODEBOOK_ROW_INL_H_
