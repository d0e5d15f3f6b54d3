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

// Where in both halves of the rows of `high`, 32 bytes each, the bytes of fields f and f + 1 of four rows are; twice for every 128-bit block.
struct TopBytes {
  alignas(64) uint8_t at[64];
  constexpr TopBytes(size_t half, size_t pair) : at() {
    for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i % 4 * 32 + i / 16 * 8 + half * 4 + pair * 2 + i / 4 % 2);
  }
};
// The bit of a word of these that comes to bit 0 of every byte.
struct TopBits {
  alignas(64) uint8_t at[64];
  constexpr explicit TopBits(size_t field) : at() {
    for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(8 * (i % 4 + field % 2 * 4) + i / 4 % 4);
  }
};

// 256 outputs, whose sums come in 16 vectors: lane i of 128-bit block b of vector [m][f] is output 64 b + 32 (m / 2) + 4 (m % 2) + 8 f + i. That is
// the order of y until Order(). Indices have the low bits of a code in bits 2 and 3. A shift of bytes of `high` brings the top bits of two
// vectors at once, those of even m to bit 0 and those of odd m to bit 4, and the choice of a table to bits that are left.
class WideStep {
  using D8 = hn::ScalableTag<uint8_t>;
  using DHalf = hn::Half<D8>;
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
    HWY_ALIGN uint8_t even[64] = {}, odd[64] = {};
    for (size_t i = 0; i < kCodebookSize; ++i) {
      const size_t low = i % 4 * 4, top = i / 4 % 2, table = i / 8;
      even[table * 16 + low + top] = odd[top * 16 + low + table] = static_cast<uint8_t>(codebook[i]) ^ kNumberFlip;
    }
    even_ = hn::Load(D8(), even);
    odd_ = hn::Load(D8(), odd);
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
    VI sums[4][4];
    for (size_t i = 0; i < 16; ++i) sums[i / 4][i % 4] = hn::BitCast(di, hn::LoadU(df, y + 16 * i));
    for (size_t c = 0; c < 4; ++c) {  // 16 outputs of each 64
      const size_t m = c / 2 * 2, f = c % 2 * 2;
      VI ordered[4];
      TransposeBlocks(di, sums[m][f], sums[m + 1][f], sums[m][f + 1], sums[m + 1][f + 1], ordered[0], ordered[1], ordered[2], ordered[3]);
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

  // The vectors m = 2 kHalf and the next one: half of them at a time, so that all that a row takes stays in registers.
  template <size_t kHalf>
  HWY_INLINE void AddHalf(const BlockView& v, V32 block_scale0, V32 block_scale1, size_t low_stride, const BlockQuads& quads, VI start,
                          hn::Vec<DF> step, Ask ask, float* y) const {
    static constexpr Expand kOneOfEach(false), kFourOfEach(true);
    static constexpr TopBytes kBytes0(kHalf, 0), kBytes1(kHalf, 1);
    const D8 d8;
    const DI di;
    const DF df;
    const hn::Repartition<uint16_t, D8> d16;
    // Which table, as the indices have it, a byte of every row.
    V choice[2][4];
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      constexpr size_t m = decltype(i)::value / 4, f = decltype(i)::value % 4;
      const V32 from = f < 2 ? block_scale0 : block_scale1;
      const V bits = m == 0 ? hn::And(hn::BitCast(d8, hn::ShiftRight<2>(from)), hn::Set(d8, uint8_t{0x30}))
                            : hn::And(hn::BitCast(d8, hn::ShiftRight<6>(from)), hn::Set(d8, uint8_t{0x03}));
      choice[m][f] = hn::TableLookupBytes(bits, hn::LoadDup128(d8, kFourOfEach.at[f % 2 * 2 + m]));
    });
    VI sums[2][4];
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) { sums[i / 4][i % 4] = start; });
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
      const V q[2] = {hn::BitCast(d8, hn::InterleaveLower(d16, r01, r23)), hn::BitCast(d8, hn::InterleaveUpper(d16, r01, r23))};
      const auto tops = [&](size_t a, size_t b) HWY_ATTR __attribute__((always_inline)) {
        return hn::Combine(d8, hn::LoadU(DHalf(), v.high + b / 2), hn::LoadU(DHalf(), v.high + a / 2));
      };
      const V h01 = tops(offset0, offset1), h23 = tops(offset2, offset3);
      const V tops0 = hn::TwoTablesLookupLanes(d8, h01, h23, hn::IndicesFromVec(d8, hn::Load(d8, kBytes0.at)));
      const V tops1 = hn::TwoTablesLookupLanes(d8, h01, h23, hn::IndicesFromVec(d8, hn::Load(d8, kBytes1.at)));
      Multiply<0>(q, tops0, choice, x, sums);
      Multiply<1>(q, tops0, choice, x, sums);
      Multiply<2>(q, tops1, choice, x, sums);
      Multiply<3>(q, tops1, choice, x, sums);
    }
    while (ask.Left()) ask.Four();
    Each([&](auto i) HWY_ATTR __attribute__((always_inline)) {
      constexpr size_t m = decltype(i)::value / 4, f = decltype(i)::value % 4;
      const V bytes = hn::And(hn::BitCast(d8, f < 2 ? block_scale0 : block_scale1), hn::Set(d8, uint8_t{63}));
      const V scale = hn::TableLookupBytesOr0(bytes, hn::LoadDup128(d8, kOneOfEach.at[f % 2 * 2 + m]));
      const auto factor = hn::Mul(hn::ConvertTo(df, hn::BitCast(di, scale)), step);
      float* to = y + 16 * (8 * kHalf + i);
      hn::StoreU(hn::MulAdd(factor, hn::ConvertTo(df, sums[m][f]), hn::LoadU(df, to)), df, to);
    });
  }

  template <size_t kField>
  HWY_INLINE void Multiply(const V (&q)[2], V tops, const V (&choice)[2][4], VX x, VI (&sums)[2][4]) const {
    static constexpr TopBits kBits(kField);
    const D8 d8;
    const V top{_mm512_multishift_epi64_epi8(hn::Load(d8, kBits.at).raw, tops.raw)};
    const V low = hn::Set(d8, uint8_t{0x0C});
    const auto index = [&](size_t m, uint8_t top_bit) HWY_ATTR __attribute__((always_inline)) {
      // OrAnd, but in the register of the codes: the choice is needed again.
      const V code{_mm512_ternarylogic_epi64(Moved<kField>(q[m]).raw, low.raw, choice[m][kField].raw, 0xEA)};
      return hn::IndicesFromVec(d8, hn::OrAnd(code, top, hn::Set(d8, top_bit)));
    };
    AddDot(hn::TableLookupLanes(even_, index(0, 0x01)), x, sums[0][kField]);
    AddDot(hn::TableLookupLanes(odd_, index(1, 0x10)), x, sums[1][kField]);
  }
  // DotNumbers, around which GCC would copy the sum twice.
  static HWY_INLINE void AddDot(V numbers, VX x, VI& sum) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum.raw) : "v"(numbers.raw), "v"(x.raw));
  }
  // With the low bits of a field's codes in bits 2 and 3.
  template <size_t kField>
  static HWY_INLINE V Moved(V q) {
    const hn::Repartition<uint16_t, D8> d16;
    const auto words = hn::BitCast(d16, q);
    if constexpr (kField == 0) return hn::BitCast(D8(), hn::ShiftLeft<2>(words));
    if constexpr (kField == 1) return q;
    if constexpr (kField > 1) return hn::BitCast(D8(), hn::ShiftRight<2 * kField - 2>(words));
  }

  V even_, odd_;  // the tables by the indices of vectors of even and odd m
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
