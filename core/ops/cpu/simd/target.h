// Choice of the SIMD target at run time. Highway is used as headers only, so the library depends on no other.
//
// In a file compiled once a target (foreach_target.h), after the last pass:
//   void F(int a) { static const auto f = SOL_BEST_TARGET(F); f(a); }
#pragma once

#include <hwy/highway.h>

#include <cstddef>
#include <cstdint>
#include <utility>

namespace sol {

// Highway's target bits that this processor runs and that the environment variable SOL_RT_SIMD_TARGETS
// (a decimal or 0x mask of the same bits; used by tests) permits. Lower bits are better targets.
int64_t SupportedTargets();

// AVX-VNNI beside AVX2, in the same masks: a bit that Highway reserves. It is no target but an addition to HWY_AVX2.
constexpr int64_t kAvxVnni = 1LL << 10;

// True if AVX2 is the best target that is compiled in and supported, with AVX-VNNI beside it.
bool PrefersAvxVnni();

// True if this processor has all that every kernel is compiled for: SSE4.2 on x86.
bool RunsBaseline();

// The name of the best target that is compiled in and supported: Highway's, or AVX2_VNNI, NEON_DOT or NEON_I8MM.
const char* BestTargetName();

template <class Pointer, size_t kCount>
Pointer ChooseBest(const std::pair<int64_t, Pointer> (&candidates)[kCount], Pointer baseline) {
  const int64_t supported = SupportedTargets();
  std::pair<int64_t, Pointer> best{INT64_MAX, baseline};
  for (const auto& candidate : candidates) {
    if (candidate.second != nullptr && (supported & candidate.first) && candidate.first < best.first) best = candidate;
  }
  return best.second;
}

}  // namespace sol

#if HWY_ARCH_X86
#define SOL_TARGETS(F)                                                                       \
  {HWY_AVX3_DL, HWY_CHOOSE_AVX3_DL(F)}, {HWY_AVX3, HWY_CHOOSE_AVX3(F)},                      \
      {HWY_AVX2, HWY_CHOOSE_AVX2(F)}, {HWY_SSE4, HWY_CHOOSE_SSE4(F)}
#elif HWY_ARCH_ARM
#define SOL_TARGETS(F)                                                                      \
  {HWY_NEON_BF16, HWY_CHOOSE_NEON_BF16(F)}, {HWY_NEON, HWY_CHOOSE_NEON(F)},                 \
      {HWY_NEON_WITHOUT_AES, HWY_CHOOSE_NEON_WITHOUT_AES(F)}
#else
#define SOL_TARGETS(F) {HWY_STATIC_TARGET, &HWY_STATIC_DISPATCH(F)}
#endif

#define SOL_BEST_TARGET(F)                                                                          \
  ([]() {                                                                                           \
    using Pointer = decltype(&HWY_STATIC_DISPATCH(F));                                              \
    const std::pair<int64_t, Pointer> candidates[] = {SOL_TARGETS(F)};                              \
    return ::sol::ChooseBest<Pointer>(candidates, &HWY_STATIC_DISPATCH(F));                         \
  }())
