// From codes of 3 bits to the numbers that they stand for: entries of the four tables of common/nested_format.h.
//
//   Tables            the 32 entries in registers, looked up by a vector of indices: code + 8 t, in bits that suit the processor
//   CodeTile          32 outputs of one block: numbers of four channels, one output a 32-bit lane
//   DecodeCodebook    a tile's outputs of one block, as tile-inl.h multiplies them
//
// Four rows are interleaved first, so that a 32-bit lane has one byte of each. Neighbouring bytes of a row are of neighbouring outputs, so a mask or
// a shift gives the next outputs in order.

#if defined(SOL_CODEBOOK_DECODE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_CODEBOOK_DECODE_INL_H_
#undef SOL_CODEBOOK_DECODE_INL_H_
#else
#define SOL_CODEBOOK_DECODE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>

#include "cpu/matmul/dot-inl.h"
#include "cpu/matmul/matmul_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// 1 if one instruction looks up in 32 bytes. Else there are two look-ups in 16, and bit 7 of an index selects between them.
#undef SOL_LOOKS_UP_32
#define SOL_LOOKS_UP_32 (HWY_TARGET <= HWY_AVX3_DL || HWY_TARGET_IS_NEON)

// Bytes whose bits above 8 - kBits are their neighbours'.
template <class D8, int kBits>
HWY_INLINE hn::Vec<D8> Moved(hn::Vec<D8> bytes) {
  return hn::BitCast(D8(), hn::ShiftRight<kBits>(hn::BitCast(hn::Repartition<uint16_t, D8>(), bytes)));
}

// D8: vectors of 16, 32 or 64 bytes.
template <class D8>
class Tables {
 public:
  using V = hn::Vec<D8>;

  // With the bits of `flip` flipped in every entry.
  HWY_INLINE Tables(const int8_t* codebook, uint8_t flip) {
    const D8 d8;
    HWY_ALIGN uint8_t entries[hn::MaxLanes(d8) < 32 ? 32 : hn::MaxLanes(d8)];
    for (size_t i = 0; i < sizeof(entries); ++i) entries[i] = static_cast<uint8_t>(codebook[i % kCodebookSize]) ^ flip;
#if HWY_TARGET <= HWY_AVX3_DL
    all_ = hn::Load(d8, entries);
#elif HWY_TARGET_IS_NEON
    all_ = vld1q_u8_x2(entries);
#else
    first_ = hn::LoadDup128(d8, entries);
    second_ = hn::LoadDup128(d8, entries + 16);
#endif
  }

  // The part of the indices that says which table, of bytes of `block_scale`.
  static HWY_INLINE V Choice(V block_scale) {
    const D8 d8;
    const V moved = hn::ShiftRight<3>(block_scale);
#if SOL_LOOKS_UP_32
    return hn::And(moved, hn::Set(d8, uint8_t{0x18}));
#else
    return hn::OrAnd(hn::And(block_scale, hn::Set(d8, uint8_t{0x80})), moved, hn::Set(d8, uint8_t{0x08}));
#endif
  }

  // `rest`, in which these bits are zero, with the bits kMask of `bytes`.
  template <uint8_t kMask>
  static HWY_INLINE V Index(V rest, V bytes) {
    const V mask = hn::Set(D8(), kMask);
#if HWY_TARGET_IS_NEON
    return hn::BitwiseIfThenElse(mask, bytes, rest);
#else
    return hn::OrAnd(rest, bytes, mask);
#endif
  }

  // Entries of indices: the code in bits 0 to 2, beside its Choice.
  HWY_INLINE V LookUp(V index) const {
#if HWY_TARGET <= HWY_AVX3_DL
    return hn::TableLookupLanes(all_, hn::IndicesFromVec(D8(), index));
#elif HWY_TARGET_IS_NEON
    return V(vqtbl2q_u8(all_, index.raw));
#else
    const V other = hn::Xor(index, hn::Set(D8(), uint8_t{0x80}));
    return hn::Or(hn::TableLookupBytesOr0(first_, index), hn::TableLookupBytesOr0(second_, other));
#endif
  }

 private:
#if HWY_TARGET <= HWY_AVX3_DL
  V all_;
#elif HWY_TARGET_IS_NEON
  uint8x16x2_t all_;  // from two vectors GCC would put it together in memory at every use
#else
  V first_, second_;
#endif
};

// D8: vectors of 16 or 32 bytes, which hold 4 or 8 outputs.
template <class D8>
class CodeTile {
 public:
  using V = hn::Vec<D8>;
  using D32 = hn::Repartition<uint32_t, D8>;
  static constexpr size_t kOutputs = hn::MaxLanes(D32()), kPieces = 8 / kOutputs;

  // Of the tile's 32 bytes of `block_scale`.
  HWY_INLINE explicit CodeTile(const uint8_t* block_scale) {
    const D32 d32;
    const hn::Rebind<uint8_t, D32> d_bytes;
    for (size_t f = 0; f < 4; ++f) {
      for (size_t p = 0; p < kPieces; ++p) {
        const auto bytes = hn::PromoteTo(d32, hn::LoadU(d_bytes, block_scale + 8 * f + p * kOutputs));
        choice_[f][p] = Tables<D8>::Choice(hn::BitCast(D8(), hn::Mul(bytes, hn::Set(d32, 0x01010101u))));
      }
    }
  }

  // Of four rows' 8 bytes of `low` and 4 of `high`: numbers[f][p] has outputs 8 f + p kOutputs … in order, a byte of each row.
  HWY_INLINE void Decode(const Tables<D8>& tables, const uint8_t* const (&low)[4], const uint8_t* const (&high)[4],
                         V (&numbers)[4][kPieces]) const {
    const hn::Full128<uint8_t> d;
    const auto lower = Interleave(hn::Full64<uint8_t>(), low), upper = Interleave(hn::Full32<uint8_t>(), high);
    const auto first = hn::BitCast(d, hn::InterleaveLower(hn::Full128<uint16_t>(), lower.first, lower.second));
    const auto last = hn::BitCast(d, hn::InterleaveUpper(hn::Full128<uint16_t>(), lower.first, lower.second));
    const auto tops = hn::BitCast(d, hn::InterleaveLower(hn::Full128<uint16_t>(), upper.first, upper.second));
    if constexpr (kPieces == 1) {
      HWY_ALIGN static constexpr uint32_t kCodes[8] = {0, 0, 0, 0, 3, 3, 3, 3}, kTops[8] = {4, 4, 4, 4, 5, 5, 5, 5};
      const D32 d32;
      const V both = hn::Combine(D8(), tops, tops);
      const auto moved = [&](const uint32_t* by) HWY_ATTR { return hn::BitCast(D8(), hn::Shr(hn::BitCast(d32, both), hn::Load(d32, by))); };
      Piece(tables, hn::Combine(D8(), last, first), moved(kCodes), moved(kTops), 0, numbers);
    } else {
      Piece(tables, first, tops, Moved<D8, 4>(tops), 0, numbers);
      Piece(tables, last, Moved<D8, 3>(tops), Moved<D8, 5>(tops), 1, numbers);
    }
  }

 private:
  using V16 = hn::Vec<hn::Full128<uint16_t>>;
  struct Pairs {
    V16 first, second;  // rows 0 and 1, rows 2 and 3
  };
  template <class DRow>
  static HWY_INLINE Pairs Interleave(DRow d_row, const uint8_t* const (&rows)[4]) {
    const hn::Full128<uint8_t> d;
    const hn::Full128<uint16_t> d16;
    const auto load = [&](size_t i) HWY_ATTR { return hn::ResizeBitCast(d, hn::LoadU(d_row, rows[i])); };
    return {hn::BitCast(d16, hn::InterleaveLower(d, load(0), load(1))), hn::BitCast(d16, hn::InterleaveLower(d, load(2), load(3)))};
  }
  // One piece of every field, from its bytes of `low`, those of `high` with a code in bits 0 to 2, and those with a top bit in bit 2.
  HWY_INLINE void Piece(const Tables<D8>& tables, V low, V codes, V tops, size_t p, V (&numbers)[4][kPieces]) const {
    using T = Tables<D8>;
    numbers[0][p] = tables.LookUp(T::template Index<7>(choice_[0][p], low));
    numbers[1][p] = tables.LookUp(T::template Index<7>(choice_[1][p], Moved<D8, 3>(low)));
    numbers[2][p] = tables.LookUp(T::template Index<7>(choice_[2][p], codes));
    numbers[3][p] = tables.LookUp(T::template Index<4>(T::template Index<3>(choice_[3][p], Moved<D8, 6>(low)), tops));
  }

  V choice_[4][kPieces];
};

// `width` outputs of block b from n on: quads in the order `phased` whose bytes are numbers with `flip` flipped, and the block's scales. Outputs
// past N are zero.
template <size_t kStride>
HWY_INLINE void DecodeCodebook(const Nested& w, size_t b, size_t n, size_t width, uint8_t flip, uint32_t (&quads)[kBlock / 4][kStride],
                               float (&scale)[kStride]) {
  const hn::CappedTag<uint8_t, 32> d8;
  using Codes = CodeTile<decltype(d8)>;
  const hn::Repartition<uint32_t, decltype(d8)> d32;
  const hn::CappedTag<float, 8> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<uint8_t, decltype(df)> d_bytes;
  const Tables<decltype(d8)> tables(w.codebook, flip);
  const size_t low_stride = w.N / 4, high_stride = w.N / 8;
  for (size_t at = 0; at < width; at += kCodeTile) {
    if (n + at >= w.N) {
      for (auto& quad : quads) std::fill(quad + at, quad + at + kCodeTile, 0u);
      std::fill(scale + at, scale + at + kCodeTile, 0.0f);
      continue;
    }
    const uint8_t* block_scale = w.block_scale + b * w.N + n + at;
    const Codes codes(block_scale);
    for (size_t quad = 0; quad < kBlock / 4; ++quad) {
      const size_t first = b * kBlock + quad % 2 * 16 + quad / 2;
      const uint8_t *low[4], *high[4];
      for (size_t i = 0; i < 4; ++i) {
        low[i] = w.low + (first + 4 * i) * low_stride + (n + at) / 4;
        high[i] = w.high + (first + 4 * i) * high_stride + (n + at) / 8;
      }
      hn::Vec<decltype(d8)> numbers[4][Codes::kPieces];
      codes.Decode(tables, low, high, numbers);
      for (size_t f = 0; f < 4; ++f) {
        for (size_t p = 0; p < Codes::kPieces; ++p) {
          hn::StoreU(hn::BitCast(d32, numbers[f][p]), d32, quads[quad] + at + 8 * f + p * Codes::kOutputs);
        }
      }
    }
    for (size_t i = 0; i < kCodeTile; i += hn::MaxLanes(df)) {
      const auto m = hn::And(hn::PromoteTo(di, hn::LoadU(d_bytes, block_scale + i)), hn::Set(di, 63));
      hn::StoreU(hn::ConvertTo(df, m), df, scale + at + i);
    }
  }
}

// y[i] times the scale of output n + i, for i < count, a multiple of 32.
HWY_INLINE void ScaleOutputs(const Nested& w, size_t n, size_t count, float* y) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<uint16_t, decltype(df)> d16;
  const hn::Rebind<hwy::float16_t, decltype(df)> dh;
  for (size_t i = 0; i < count; i += hn::MaxLanes(df)) {
    const auto s = hn::PromoteTo(df, hn::BitCast(dh, hn::LoadU(d16, w.output_scale + n + i)));
    hn::StoreU(hn::Mul(s, hn::LoadU(df, y + i)), df, y + i);
  }
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_CODEBOOK_DECODE_INL_H_
