// Places of the weights of some outputs of one block.

#if defined(SOL_VIEWS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_VIEWS_INL_H_
#undef SOL_VIEWS_INL_H_
#else
#define SOL_VIEWS_INL_H_
#endif

#include <hwy/highway.h>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/simd/prefetch.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {

// Weights of some outputs of one block; copied and padded where a vector would run past the last output. At 3 bits `base` is `low`, and
// `high` and `block_scale` are there.
struct BlockView {
  const uint8_t* base;
  const uint16_t* scale;
  const uint8_t* zero;
  const uint8_t* plane1;
  const uint8_t* plane2;
  const uint8_t* high = nullptr;
  const uint8_t* block_scale = nullptr;
};

// The weights of outputs n, … of block b, where they lie.
template <int kBits>
HWY_INLINE BlockView ViewAt(const Nested& w, const uint8_t* base, size_t b, size_t n) {
  const size_t at = b * w.N + n;
  return {base, w.scale + at, w.zero + at, kBits > 4 ? w.plane1 + at * 8 : nullptr, kBits > 6 ? w.plane2 + at * 8 : nullptr};
}

// Base, scales and zero points for a product with a channel-major matrix: in the matrix, or at 4 bits in a copy of it. The product goes through
// ranges of outputs, and in each through the blocks. The matrix is one range, for rows are read whole; a copy has a range for each of its panels.
template <int kBits>
class ChannelRows {
 public:
  ChannelRows(const Nested& w, size_t first_block, size_t end_block, size_t begin, size_t end)
      : w_(w), first_(first_block), end_(end_block), width_(IsCopy() ? kPanel : end - begin) {}

  size_t Width() const { return width_; }  // of a range
  // The cache that is asked into. The hardware sees a copy as one stream, and brings it into the second-level cache on its own.
  bool FirstLevel() const { return IsCopy() || AsksFirstLevel(); }
  BlockPlace At(size_t b, size_t n) const {
    if (IsCopy()) return PlaceInCopy(w_.packed, w_.N, first_, end_, b, n);
    const size_t row_bytes = w_.N / 2, at = b * w_.N + n;
    return {w_.base + b * kBlock * row_bytes + n / 2, w_.scale + at, w_.zero + at, row_bytes};
  }
  BlockView View(const BlockPlace& place, size_t b, size_t n) const {
    const size_t at = b * w_.N + n;
    return {place.base, place.scale, place.zero, kBits > 4 ? w_.plane1 + at * 8 : nullptr, kBits > 6 ? w_.plane2 + at * 8 : nullptr};
  }

 private:
  // Processors of SSE4 alone are not worth the kernels' size.
  bool IsCopy() const { return kBits == 4 && HWY_TARGET != HWY_SSE4 && w_.packed != nullptr; }

  const Nested& w_;
  size_t first_, end_, width_;
};

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#endif  // SOL_VIEWS_INL_H_
