// Activations: pruning to the largest, quantizing to int8, listing what is left.

#if defined(SOL_QUANTIZE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_QUANTIZE_INL_H_
#undef SOL_QUANTIZE_INL_H_
#else
#define SOL_QUANTIZE_INL_H_
#endif

#include <hwy/highway.h>

#include <cstring>

#include "nested.h"

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

// How many of x have a magnitude of at least `threshold` (as bits).
HWY_INLINE size_t CountAtLeast(const float* x, size_t n, int32_t threshold) {
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

inline void KeepLargest(float* x, size_t n, size_t keep) {
  if (keep >= n) return;
  // Bisection on the magnitude: at least `keep` elements reach `low`, fewer reach `high`.
  int32_t low = 0;
  int64_t high = int64_t{0x7FFFFFFF} + 1;
  size_t reach_low = n;
  while (high - low > 1 && reach_low != keep) {
    const int32_t middle = static_cast<int32_t>(low + (high - low) / 2);
    const size_t reach = CountAtLeast(x, n, middle);
    if (reach >= keep) {
      low = middle;
      reach_low = reach;
    } else {
      high = middle;
    }
  }
  if (reach_low == keep) {
    const hn::ScalableTag<int32_t> di;
    const hn::Rebind<float, decltype(di)> df;
    constexpr size_t kLanes = hn::MaxLanes(di);
    const auto below = hn::Set(di, low - 1);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
      const auto kept = hn::RebindMask(df, hn::Gt(MagnitudeBits(di, x + i), below));
      hn::StoreU(hn::IfThenElseZero(kept, hn::LoadU(df, x + i)), df, x + i);
    }
    for (; i < n; ++i) {
      if (MagnitudeBits(x[i]) < low) x[i] = 0.0f;
    }
    return;
  }
  // More elements equal the smallest kept magnitude than there is room for.
  size_t room = keep - (low == 0x7FFFFFFF ? 0 : CountAtLeast(x, n, low + 1));
  for (size_t i = 0; i < n; ++i) {
    const int32_t bits = MagnitudeBits(x[i]);
    if (bits > low) continue;
    if (bits == low && room > 0) {
      --room;
    } else {
      x[i] = 0.0f;
    }
  }
}

inline void Quantize(const float* x, size_t K, size_t token, const Activations& out) {
  const hn::CappedTag<float, 16> df;
  const hn::Rebind<int32_t, decltype(df)> di;
  const hn::Rebind<int8_t, decltype(df)> d8;
  const hn::Full128<uint8_t> du;
  constexpr size_t kLanes = hn::MaxLanes(df);
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
    const float a = largest / 127.0f;

    HWY_ALIGN uint8_t codes[kBlock];
    auto sum = hn::Zero(di);
    const auto divisor = hn::Set(df, a > 0.0f ? a : 1.0f);
    const auto live = hn::Set(di, a > 0.0f ? -1 : 0);
    for (size_t i = 0; i < kVectors; ++i) {
      const auto quotient = hn::Div(hn::LoadU(df, from + i * kLanes), divisor);
      auto code = hn::And(hn::NearestInt(quotient), live);
      code = hn::Min(hn::Max(code, hn::Set(di, -127)), hn::Set(di, 127));
      sum = hn::Add(sum, code);
      hn::StoreU(hn::DemoteTo(d8, code), d8, reinterpret_cast<int8_t*>(codes) + i * kLanes);
    }
    out.step[token * blocks + b] = a / 16.0f;
    out.sum[token * blocks + b] = static_cast<float>(hn::ReduceSum(di, sum)) * (a / 16.0f);

    const size_t at = token * K + b * kBlock;
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
}

inline void ListActive(const int8_t* natural, size_t K, const ActiveQuads& out) {
  const hn::CappedTag<int8_t, kBlock> d;
  constexpr size_t kLanes = hn::MaxLanes(d);
  uint32_t count = 0;
  for (size_t b = 0; b < K / kBlock; ++b) {
    out.begin[b] = count;
    uint32_t nonzero = 0;
    for (size_t i = 0; i < kBlock; i += kLanes) {
      uint8_t bits[8] = {};
      hn::StoreMaskBits(d, hn::Ne(hn::LoadU(d, natural + b * kBlock + i), hn::Zero(d)), bits);
      uint32_t part;
      std::memcpy(&part, bits, sizeof(part));
      nonzero |= part << i;
    }
    while (nonzero != 0) {
      Quad quad{};
      for (size_t i = 0; i < 4; ++i) {
        if (nonzero != 0) {
          quad.row[i] = static_cast<uint32_t>(b * kBlock) + static_cast<uint32_t>(__builtin_ctz(nonzero));
          quad.code[i] = natural[quad.row[i]];
          nonzero &= nonzero - 1;
        } else {
          quad.row[i] = quad.row[i - 1];  // no further row is touched
        }
      }
      out.quads[count++] = quad;
    }
  }
  out.begin[K / kBlock] = count;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_QUANTIZE_INL_H_
