// One token times a matrix of 3 bits: y [N] = x [K] W, for some of the outputs.
//
// With x[k] = a C[k] in every block of 32 channels, C an integer code, and W as common/nested_format.h has it,
//
//   y[n] = s[n] sum over blocks of a m (sum over the block's k of codebook[t][code[k, n]] C[k])
//
// The sums of integers are exact; the rest is float32. Only the rows of active channels are read, four at a time (ActiveQuads), and asked for
// ahead of time, 256 outputs at once: a line of every row of `low`.
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

#include "cpu/codebook/decode-inl.h"
#include "cpu/matmul/dot-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Where four bytes are multiplied at once, one factor is unsigned: there numbers are multiplied plus 128.
constexpr uint8_t kNumberFlip = HWY_TARGET <= HWY_AVX3_DL ? 0x80 : 0;

// sum[i] += numbers[4i … 4i+3] . x[4i … 4i+3], both from -127 to 127.
template <class DI, class VI = hn::Vec<DI>, class VU = hn::Vec<hn::Repartition<uint8_t, DI>>, class VX = hn::Vec<hn::Repartition<int8_t, DI>>>
HWY_INLINE VI DotNumbers(DI di, VU numbers, VX x, VI sum) {
#if HWY_TARGET <= HWY_AVX3_DL
  return hn::SumOfMulQuadAccumulate(di, numbers, x, sum);
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

// Asks for the four rows that begin at `row`, if the step ahead has so many.
HWY_INLINE void AskFour(StepAhead& ahead, size_t low_stride, bool first_level) {
  if (ahead.row == ahead.end) return;
  for (size_t i = 0; i < 4; ++i) {
    const size_t offset = ahead.row[i] * low_stride;
    PrefetchLine(ahead.view.base + offset, first_level);
    PrefetchLine(ahead.view.high + offset / 2, first_level);
  }
  ahead.row += 4;
}

#if HWY_TARGET <= HWY_AVX3_DL
class WideStep {
  using D8 = hn::ScalableTag<uint8_t>;
  using D32 = hn::Repartition<uint32_t, D8>;
  using DI = hn::Repartition<int32_t, D8>;
  using V = hn::Vec<D8>;
  using VI = hn::Vec<DI>;

 public:
  static constexpr size_t kOutputs = 4 * hn::MaxLanes(D8());
  static_assert(kOutputs == 256, "vectors of 64 bytes");

  HWY_INLINE explicit WideStep(const int8_t* codebook) : tables_(codebook, kNumberFlip) {}

  // Adds one block to 256 outputs.
  HWY_INLINE void Add(const BlockView& v, size_t low_stride, const BlockQuads& quads, int32_t first_sum, float a, StepAhead ahead, bool first_level,
                      float* y) const {
    V choice[4][4];
    Choices(v.block_scale, choice);
    VI sums[4][4];
    for (auto& row : sums) {
      for (auto& sum : row) sum = hn::Set(DI(), first_sum);
    }
    const int8_t* code = quads.code;
    for (const uint8_t* row = quads.row; row != quads.end; row += 4, code += 4) {
      AskFour(ahead, low_stride, first_level);
      const auto x = FourCodes(DI(), code);
      V r[4], q[4];
      hn::Vec<DHalf> h[4];
      for (size_t i = 0; i < 4; ++i) {
        const size_t offset = row[i] * low_stride;
        r[i] = hn::LoadU(D8(), v.base + offset);
        h[i] = hn::LoadU(DHalf(), v.high + offset / 2);
      }
      // Lane i of 128-bit block b of q[m] has byte 16 b + 4 m + i of each row: outputs 64 b + 32 (m / 2) + 4 (m % 2) + i + 0, 8, 16, 24.
      InterleaveRows(D8(), r[0], r[1], r[2], r[3], q[0], q[1], q[2], q[3]);
      const V h01 = hn::Combine(D8(), h[1], h[0]), h23 = hn::Combine(D8(), h[3], h[2]);
      Multiply<0, 0>(q, h01, h23, choice, x, sums);
      Multiply<0, 1>(q, h01, h23, choice, x, sums);
      Multiply<1, 0>(q, h01, h23, choice, x, sums);
      Multiply<1, 1>(q, h01, h23, choice, x, sums);
    }
    while (ahead.row != ahead.end) AskFour(ahead, low_stride, first_level);
    if (ahead.view.block_scale != nullptr) PrefetchLines(ahead.view.block_scale, kOutputs, first_level);
    for (size_t c = 0; c < 4; ++c) {  // 16 outputs of each 64
      const size_t m = c / 2 * 2, f = c % 2 * 2;
      VI ordered[4];
      TransposeBlocks(DI(), sums[m][f], sums[m + 1][f], sums[m][f + 1], sums[m + 1][f + 1], ordered[0], ordered[1], ordered[2], ordered[3]);
      for (size_t b = 0; b < 4; ++b) {
        const size_t at = 64 * b + 16 * c;
        AddScaled(DI(), ordered[b], v.block_scale + at, a, y + at);
      }
    }
  }

 private:
  using DHalf = hn::Half<D8>;

  // choice[m][f]: of the outputs of field f of q[m], a byte of every row.
  static HWY_INLINE void Choices(const uint8_t* block_scale, V (&choice)[4][4]) {
    HWY_ALIGN static constexpr uint8_t kFourOfEach[4][16] = {{0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3},
                                                             {4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7},
                                                             {8, 8, 8, 8, 9, 9, 9, 9, 10, 10, 10, 10, 11, 11, 11, 11},
                                                             {12, 12, 12, 12, 13, 13, 13, 13, 14, 14, 14, 14, 15, 15, 15, 15}};
    const D8 d8;
    const D32 d32;
    hn::Vec<D32> by_64[4], by_16[4];
    for (size_t b = 0; b < 4; ++b) by_64[b] = hn::BitCast(d32, Tables<D8>::Choice(hn::LoadU(d8, block_scale + 64 * b)));
    TransposeBlocks(d32, by_64[0], by_64[1], by_64[2], by_64[3], by_16[0], by_16[1], by_16[2], by_16[3]);
    for (size_t c = 0; c < 4; ++c) {
      for (size_t i = 0; i < 4; ++i) {
        choice[c / 2 * 2 + i % 2][c % 2 * 2 + i / 2] = hn::TableLookupBytes(hn::BitCast(d8, by_16[c]), hn::LoadDup128(d8, kFourOfEach[i]));
      }
    }
  }

  // Indices into both halves of the rows of `high`, [32] each: for each of the 128-bit blocks twice four rows' bytes of fields f and f + 1.
  struct TopBytes {
    alignas(64) uint8_t at[64];
    constexpr TopBytes(size_t half, size_t pair) : at() {
      for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>(i % 4 * 32 + i / 16 * 8 + half * 4 + pair * 2 + i / 4 % 2);
    }
  };
  // First bits, in a word of TopBytes, of the 8 bits around a code's top bit, which comes to bit 2.
  struct TopBits {
    alignas(64) uint8_t at[64];
    constexpr TopBits(size_t field, size_t odd) : at() {
      for (size_t i = 0; i < 64; ++i) at[i] = static_cast<uint8_t>((8 * (i % 4 + field % 2 * 4) + 4 * odd + i / 4 % 4 + 62) % 64);
    }
  };

  template <size_t kHalf, size_t kPair>
  HWY_INLINE void Multiply(const V (&q)[4], V h01, V h23, const V (&choice)[4][4], hn::Vec<hn::Repartition<int8_t, D8>> x, VI (&sums)[4][4]) const {
    static constexpr TopBytes kBytes(kHalf, kPair);
    const D8 d8;
    const V tops = hn::TwoTablesLookupLanes(d8, h01, h23, hn::IndicesFromVec(d8, hn::Load(d8, kBytes.at)));
    MultiplyField<2 * kHalf, 2 * kPair>(q, tops, choice, x, sums);
    MultiplyField<2 * kHalf + 1, 2 * kPair>(q, tops, choice, x, sums);
    MultiplyField<2 * kHalf, 2 * kPair + 1>(q, tops, choice, x, sums);
    MultiplyField<2 * kHalf + 1, 2 * kPair + 1>(q, tops, choice, x, sums);
  }
  template <size_t kM, size_t kField>
  HWY_INLINE void MultiplyField(const V (&q)[4], V tops, const V (&choice)[4][4], hn::Vec<hn::Repartition<int8_t, D8>> x, VI (&sums)[4][4]) const {
    static constexpr TopBits kTop(kField, kM % 2);
    const D8 d8;
    const hn::Repartition<uint16_t, D8> d16;
    const V codes = hn::BitCast(d8, hn::ShiftRight<2 * kField>(hn::BitCast(d16, q[kM])));
    const V top{_mm512_multishift_epi64_epi8(hn::Load(d8, kTop.at).raw, tops.raw)};
    const V code = hn::BitwiseIfThenElse(hn::Set(d8, uint8_t{3}), codes, top);
    const V index = hn::BitwiseIfThenElse(hn::Set(d8, uint8_t{7}), code, choice[kM][kField]);
    sums[kM][kField] = DotNumbers(DI(), tables_.LookUp(index), x, sums[kM][kField]);
  }

  Tables<D8> tables_;
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
  constexpr size_t kAhead = 256;  // outputs that are asked for at a time
  const hn::CappedTag<uint8_t, 32> narrow;
  const NarrowStep<decltype(narrow)> tile(w.codebook);
#if HWY_TARGET <= HWY_AVX3_DL
  const WideStep wide(w.codebook);
#endif
  const size_t low_stride = w.N / 4;
  const bool first_level = AsksFirstLevel();
  AheadCursor<3> ahead(w, active, first_block, end_block, begin, end, kAhead);
  for (size_t b = first_block; b < end_block; ++b) {
    if (active.begin[b] == active.begin[b + 1]) continue;
    const BlockQuads quads(active, w.K, b);
    const int32_t first_sum = FirstSum(quads);
    const float a = x.step[b] * 16.0f;
    for (size_t n = begin; n < end; n += kAhead) {
      StepAhead next = ahead.Next(n);
#if HWY_TARGET <= HWY_AVX3_DL
      if (n + kAhead <= end) {
        wide.Add(CodebookViewAt(w, b, n), low_stride, quads, first_sum, a, next, first_level, y + n);
        continue;
      }
#endif
      for (size_t at = n; at < std::min(end, n + kAhead); at += kCodeTile) {
        AskFour(next, low_stride, first_level);
        if (next.view.block_scale != nullptr && (at - n) % 64 == 0) PrefetchLine(next.view.block_scale + (at - n), first_level);
        tile.Add(CodebookViewAt(w, b, at), low_stride, quads, first_sum, a, y + at);
      }
      while (next.row != next.end) AskFour(next, low_stride, first_level);
    }
  }
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  for (size_t n = begin; n < end; n += hn::MaxLanes(df)) {
    const auto s = hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, w.output_scale + n)));
    hn::StoreU(hn::Mul(s, hn::LoadU(df, y + n)), df, y + n);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_CODEBOOK_ROW_INL_H_
