#include "cpu/simd/target.h"

#include <cstdlib>

#if HWY_ARCH_ARM_A64 && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace sol {
namespace {

int64_t DetectTargets() {
  int64_t targets = HWY_STATIC_TARGET;
#if HWY_ARCH_X86
  __builtin_cpu_init();
  targets |= HWY_SSE2;
  const bool sse4 = __builtin_cpu_supports("sse4.2") && __builtin_cpu_supports("pclmul") && __builtin_cpu_supports("aes");
  if (sse4) targets |= HWY_SSE4;
  const bool avx2 = sse4 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
  if (avx2) targets |= HWY_AVX2;
  const bool avx3 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd") &&
                    __builtin_cpu_supports("avx512vl");
  if (avx3) targets |= HWY_AVX3;
  const bool avx3_dl = avx3 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi") &&
                       __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bitalg") &&
                       __builtin_cpu_supports("avx512vpopcntdq") && __builtin_cpu_supports("gfni") &&
                       __builtin_cpu_supports("vpclmulqdq");
  if (avx3_dl) targets |= HWY_AVX3_DL;
#elif HWY_ARCH_ARM_A64 && defined(__linux__)
  // Bits of <asm/hwcap.h>, which older kernel headers lack.
  constexpr unsigned long kAes = 1ul << 3, kAdvSimdHalf = 1ul << 10, kDotProduct = 1ul << 20, kBFloat16 = 1ul << 14;
  targets |= HWY_NEON_WITHOUT_AES;
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  if (caps & kAes) {
    targets |= HWY_NEON;
    if ((caps & kAdvSimdHalf) && (caps & kDotProduct) && (caps2 & kBFloat16)) targets |= HWY_NEON_BF16;
  }
#endif
  const char* mask = std::getenv("SOL_RT_SIMD_TARGETS");
  if (mask != nullptr && *mask != '\0') targets &= std::strtoll(mask, nullptr, 0);
  return targets;
}

}  // namespace

int64_t SupportedTargets() {
  static const int64_t targets = DetectTargets();
  return targets;
}

const char* BestTargetName() {
  const int64_t usable = (SupportedTargets() & HWY_TARGETS) | HWY_STATIC_TARGET;
  return hwy::TargetName(usable & -usable);
}

}  // namespace sol

// Highway's name of the instruction set in use, for diagnostics.
extern "C" __attribute__((visibility("default"))) const char* SolOpsTarget() { return sol::BestTargetName(); }
