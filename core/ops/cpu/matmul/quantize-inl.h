// From floats to codes: one token's x [K] on its way into a product.
//
//   KeepLargest   x[k] = 0 for all but the `count` channels of largest |x[k]|; of equal ones the first stay. What is searched is the lowest
//                 magnitude that stays, as an integer: the bits of |x| are in the order of the magnitudes.
//   Quantize      in every block of 32 channels, with a = max |x| / most:
//                   C = round-half-even(x / a), |C| <= most, and 0 where a is 0
//                 most is 127 for a matrix at 4 or 6 bits and 32258 = 254 * 127 at 8 bits, where C is stored as two halves of int8,
//                 C = 254 c1 + c2. Outputs: codes int8 [halves, K] in the orders that Activations lists, step [K/32] = a / 16, and
//                 sum [K/32] = a / 16 * the sum of C.
//   ListActive    the channels with C != 0, in quads of one block each, for RowChannelMajor: rows uint8, codes int8 [halves, …].
//
// A vector has one channel a lane, in order.

#if defined(SOL_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_QUANTIZE_INL_H_
#undef SOL_QUANTIZE_INL_H_
#else
#define SOL_QUANTIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/matmul/matmul_kernels.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

// Bits of |x| as int32: for floats without sign, the order of the bits is the order of the values.
template <class DI, class V = hn::Vec<DI>>
HWY_INLINE V MagnitudeBits(DI di, const float* x) {
  return hn::And(hn::BitCast(di, hn::LoadU(hn::Rebind<float, DI>(), x)), hn::Set(di, 0x7FFFFFFF));
}

HWY_INLINE int32_t MagnitudeBits(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits & 0x7FFFFFFF;
}

// Counts the x with a magnitude of at least `threshold` (as bits).
HWY_NOINLINE inline size_t CountAtLeast(const float* x, size_t n, int32_t threshold) {
  const hn::ScalableTag<int32_t> di;
  constexpr size_t kLanes = hn::MaxLanes(di);
  const auto below = hn::Set(di, threshold - 1);
  size_t count0 = 0, count1 = 0;
  size_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    count0 += hn::CountTrue(di, hn::Gt(MagnitudeBits(di, x + i), below));
    count1 += hn::CountTrue(di, hn::Gt(MagnitudeBits(di, x + i + kLanes), below));
  }
  for (; i < n; ++i) count0 += MagnitudeBits(x[i]) >= threshold;
  return count0 + count1;
}

template <class DI>
HWY_INLINE int32_t LargestBits(DI di, const float* x, size_t n) {
  auto largest = hn::Zero(di);
  size_t i = 0;
  for (; i + hn::MaxLanes(di) <= n; i += hn::MaxLanes(di)) largest = hn::Max(largest, MagnitudeBits(di, x + i));
  int32_t result = hn::ReduceMax(di, largest);
  for (; i < n; ++i) result = std::max(result, MagnitudeBits(x[i]));
  return result;
}

inline size_t KeepLargest(float* x, size_t n, size_t count) {
  if (count >= n) return 0;
  // At least `count` elements reach the magnitude `low`, fewer reach `high`.
  const hn::ScalableTag<int32_t> d_bits;
  int64_t low = 0, high = int64_t{LargestBits(d_bits, x, n)} + 1;
  size_t reach_low = n, reach_high = 0, pass = 0;
  for (; high - low > 1 && reach_low != count; ++pass) {
    int64_t middle;
    if (low <= 1 && pass < 12) {
      // Octaves below the largest, until there is a bracket; and once, whether as many as `count` differ from 0.
      middle = pass == 4 ? 1 : high - (int64_t{2} << 23);
    } else if (pass % 4 == 3) {
      middle = low + (high - low) / 2;  // whatever the distribution, the end is near
    } else {
      const float share = (static_cast<float>(reach_low - count) + 0.5f) / static_cast<float>(reach_low - reach_high);
      middle = low + static_cast<int64_t>(static_cast<float>(high - low) * share);
    }
    middle = std::min(std::max(middle, low + 1), high - 1);
    const size_t reach = CountAtLeast(x, n, static_cast<int32_t>(middle));
    if (reach >= count) {
      low = middle;
      reach_low = reach;
    } else {
      high = middle;
      reach_high = reach;
    }
  }
  if (low == 0) return pass;  // fewer than `count` differ from 0
  if (reach_low == count) {
    const hn::ScalableTag<int32_t> di;
    const hn::Rebind<float, decltype(di)> df;
    constexpr size_t kLanes = hn::MaxLanes(di);
    const auto below = hn::Set(di, static_cast<int32_t>(low - 1));
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const auto kept = hn::RebindMask(df, hn::Gt(MagnitudeBits(di, x + i), below));
      hn::StoreU(hn::IfThenElseZero(kept, hn::LoadU(df, x + i)), df, x + i);
    }
    for (; i < n; ++i) {
      if (MagnitudeBits(x[i]) < low) x[i] = 0.0f;
    }
    return pass;
  }
  // More elements equal the smallest magnitude that stays than there is room for.
  size_t room = count - (low == 0x7FFFFFFF ? 0 : CountAtLeast(x, n, low + 1));
  for (size_t i = 0; i < n; ++i) {
    const int32_t bits = MagnitudeBits(x[i]);
    if (bits > low) continue;
    if (bits == low && room > 0) {
      --room;
    } else {
      x[i] = 0.0f;
    }
  }
  return pass;
}

// Writes one block's codes of one half in every order asked for.
HWY_INLINE void StoreOrders(const uint8_t* HWY_RESTRICT codes, size_t at, const Activations& out) {
  const hn::Full128<uint8_t> du;
  const auto low = hn::Load(du, codes), high = hn::Load(du, codes + 16);
  if (out.natural != nullptr) std::memcpy(out.natural + at, codes, kBlock);
  const auto even = hn::ConcatEven(du, high, low), odd = hn::ConcatOdd(du, high, low);
  if (out.even_odd != nullptr) {
    uint8_t* to = reinterpret_cast<uint8_t*>(out.even_odd + at);
    hn::StoreU(even, du, to);
    hn::StoreU(odd, du, to + 16);
  }
  if (out.phased != nullptr) {
    uint8_t* to = reinterpret_cast<uint8_t*>(out.phased + at);
    hn::StoreU(hn::ConcatEven(du, odd, even), du, to);
    hn::StoreU(hn::ConcatOdd(du, odd, even), du, to + 16);
  }
}

template <size_t kHalves>
HWY_INLINE void QuantizeHalves(const float* x, size_t K, size_t token, const Activations& out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  constexpr size_t kLanes = hn::MaxLanes(df);
  constexpr int kMost = kHalves == 1 ? 127 : 127 * kHalfStep;
  constexpr size_t kVectors = kBlock / kLanes;
  const size_t blocks = K / kBlock;
  for (size_t b = 0; b < blocks; ++b) {
    const float* from = x + b * kBlock;
    // A maximum of bits, not of floats: NaN wins, and spoils the outputs as it should.
    auto magnitude = MagnitudeBits(di, from);
    for (size_t i = 1; i < kVectors; ++i) magnitude = hn::Max(magnitude, MagnitudeBits(di, from + i * kLanes));
    const int32_t bits = hn::ReduceMax(di, magnitude);
    float largest;
    std::memcpy(&largest, &bits, sizeof(largest));
    const float a = largest / static_cast<float>(kMost);

    HWY_ALIGN uint8_t codes[kHalves][kBlock];
    auto sum = hn::Zero(di);
    const auto divisor = hn::Set(df, a > 0.0f ? a : 1.0f);
    const auto live = hn::Set(di, a > 0.0f ? -1 : 0);
    for (size_t i = 0; i < kVectors; ++i) {
      const auto quotient = hn::Div(hn::LoadU(df, from + i * kLanes), divisor);
      auto code = hn::And(hn::NearestInt(quotient), live);
      code = hn::Min(hn::Max(code, hn::Set(di, -kMost)), hn::Set(di, kMost));
      sum = hn::Add(sum, code);
      if constexpr (kHalves == 2) {
        // Whichever way a tie is split, 254 c1 + c2 is the code.
        const auto coarse = hn::NearestInt(hn::Mul(hn::ConvertTo(df, code), hn::Set(df, 1.0f / kHalfStep)));
        hn::StoreU(hn::DemoteTo(d8, coarse), d8, reinterpret_cast<int8_t*>(codes[0]) + i * kLanes);
        code = hn::Sub(code, hn::Mul(coarse, hn::Set(di, kHalfStep)));
      }
      hn::StoreU(hn::DemoteTo(d8, code), d8, reinterpret_cast<int8_t*>(codes[kHalves - 1]) + i * kLanes);
    }
    out.step[token * blocks + b] = a / 16.0f;
    out.sum[token * blocks + b] = static_cast<float>(hn::ReduceSum(di, sum)) * (a / 16.0f);

    for (size_t h = 0; h < kHalves; ++h) StoreOrders(codes[h], (token * kHalves + h) * K + b * kBlock, out);
  }
}

inline void Quantize(const float* x, size_t K, size_t token, const Activations& out) {
  if (out.halves == 1) return QuantizeHalves<1>(x, K, token, out);
  QuantizeHalves<2>(x, K, token, out);
}

template <size_t kHalves>
HWY_INLINE void ListActiveHalves(const int8_t* natural, const float* step, size_t K, const ActiveQuads& out) {
  const hn::CappedTag<int8_t, kBlock> d;
  const hn::RebindToUnsigned<decltype(d)> du;
  constexpr size_t kLanes = hn::MaxLanes(d);
  const size_t stride = K + ActiveQuads::kSlack;
  size_t count = 0;  // a multiple of 4 between blocks
  for (size_t b = 0; b < K / kBlock; ++b) {
    out.begin[b] = static_cast<uint32_t>(count / 4);
    const size_t first = count;
    for (size_t i = 0; i < kBlock; i += kLanes) {
      const auto codes = hn::LoadU(d, natural + b * kBlock + i);
      auto any = codes;
      if constexpr (kHalves == 2) any = hn::Or(any, hn::LoadU(d, natural + K + b * kBlock + i));
      const auto nonzero = hn::Ne(any, hn::Zero(d));
      hn::CompressStore(codes, nonzero, d, out.codes + count);
      if constexpr (kHalves == 2) {
        hn::CompressStore(hn::LoadU(d, natural + K + b * kBlock + i), nonzero, d, out.codes + stride + count);
      }
      const auto rows = hn::Iota(du, static_cast<uint8_t>(i));
      count += hn::CompressStore(rows, hn::RebindMask(du, nonzero), du, out.rows + count);
    }
    if (count == first) {
      if (std::isfinite(step[b])) continue;
      out.rows[count++] = 0;  // NaN or, on Arm, infinity: no block to skip, it spoils the outputs as it should
      for (size_t h = 0; h < kHalves; ++h) out.codes[h * stride + first] = 0;
    }
    // Zeros to the full quad, for the last row once more: no other row is touched.
    for (size_t h = 0; h < kHalves; ++h) std::memset(out.codes + h * stride + count, 0, 4);
    std::memset(out.rows + count, out.rows[count - 1], 4);
    count = (count + 3) / 4 * 4;
  }
  out.begin[K / kBlock] = static_cast<uint32_t>(count / 4);
}

inline void ListActive(const Activations& x, size_t K, const ActiveQuads& out) {
  if (x.halves == 1) return ListActiveHalves<1>(x.natural, x.step, K, out);
  ListActiveHalves<2>(x.natural, x.step, K, out);
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_QUANTIZE_INL_H_
