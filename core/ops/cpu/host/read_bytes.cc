// Reads memory as fast as a processor can: what `sol-rt bench` measures the read bandwidth with.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/host/read_bytes.cc"
#include <hwy/foreach_target.h>  // must come before highway.h

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "common/export.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

uint64_t SumWords(const uint8_t* data, size_t size) {
  const hn::ScalableTag<uint64_t> d;
  const hn::Repartition<uint8_t, decltype(d)> bytes;
  const size_t step = hn::Lanes(bytes);
  // Four sums: the additions never wait for each other, so that loads are the limit.
  auto s0 = hn::Zero(d), s1 = s0, s2 = s0, s3 = s0;
  size_t i = 0;
  for (; i + 4 * step <= size; i += 4 * step) {
    s0 = hn::Add(s0, hn::BitCast(d, hn::LoadU(bytes, data + i)));
    s1 = hn::Add(s1, hn::BitCast(d, hn::LoadU(bytes, data + i + step)));
    s2 = hn::Add(s2, hn::BitCast(d, hn::LoadU(bytes, data + i + 2 * step)));
    s3 = hn::Add(s3, hn::BitCast(d, hn::LoadU(bytes, data + i + 3 * step)));
  }
  uint64_t sum = hn::ReduceSum(d, hn::Add(hn::Add(s0, s1), hn::Add(s2, s3)));
  for (; i < size; i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, data + i, HWY_MIN(sizeof(word), size - i));
    sum += word;
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

// Reads `size` bytes once and returns the sum, modulo 2^64, of their 64-bit words; a last incomplete word is filled up
// with zeros.
extern "C" SOL_EXPORT uint64_t SolOpsReadBytes(const void* data, size_t size) {
  static const auto sum_words = SOL_BEST_TARGET(SumWords);
  return sum_words(static_cast<const uint8_t*>(data), size);
}

}  // namespace sol
#endif
