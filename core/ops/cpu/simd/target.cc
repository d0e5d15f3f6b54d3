#include "cpu/simd/target.h"

#include <algorithm>
#include <cstdlib>
#include <initializer_list>

#include "common/export.h"

#if HWY_ARCH_X86
#include <cpuid.h>
#elif HWY_ARCH_ARM_A64 && defined(__linux__)
#include <sys/auxv.h>
#elif HWY_ARCH_ARM_A64 && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace sol {
namespace {

#if HWY_ARCH_X86
// Registers that the instruction cpuid returns. __builtin_cpu_supports needs a library that some compilers come without.
class Cpuid {
 public:
  explicit Cpuid(unsigned leaf, unsigned subleaf = 0) {
    unsigned edx = 0;
    if (!__get_cpuid_count(leaf, subleaf, &eax_, &ebx_, &ecx_, &edx)) eax_ = ebx_ = ecx_ = 0;
  }
  bool Eax(std::initializer_list<unsigned> bits) const { return All(eax_, bits); }
  bool Ebx(std::initializer_list<unsigned> bits) const { return All(ebx_, bits); }
  bool Ecx(std::initializer_list<unsigned> bits) const { return All(ecx_, bits); }

 private:
  static bool All(unsigned word, std::initializer_list<unsigned> bits) {
    return std::all_of(bits.begin(), bits.end(), [word](unsigned bit) { return word >> bit & 1; });
  }
  unsigned eax_ = 0, ebx_ = 0, ecx_ = 0;
};

// The register sets that the system saves when it switches threads: the register XCR0.
uint64_t SavedRegisters() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return uint64_t{high} << 32 | low;
}

#elif HWY_ARCH_ARM_A64
// Features that arm_features-inl.h builds on.
struct ArmFeatures {
  bool aes = false, half = false, dot = false, bfloat16 = false, i8mm = false;
};

#if defined(__linux__)
ArmFeatures Detect() {
  // Bits of <asm/hwcap.h>, which older kernel headers lack.
  const unsigned long caps = getauxval(AT_HWCAP), caps2 = getauxval(AT_HWCAP2);
  const auto has = [](unsigned long word, unsigned bit) { return (word >> bit & 1) != 0; };
  return {has(caps, 3), has(caps, 10), has(caps, 20), has(caps2, 14), has(caps2, 13)};
}
#elif defined(__APPLE__)
bool HasFeature(const char* name) {
  int value = 0;
  size_t size = sizeof(value);
  return sysctlbyname(name, &value, &size, nullptr, 0) == 0 && value != 0;
}

ArmFeatures Detect() {
  return {HasFeature("hw.optional.arm.FEAT_AES"), HasFeature("hw.optional.arm.FEAT_FP16"), HasFeature("hw.optional.arm.FEAT_DotProd"),
          HasFeature("hw.optional.arm.FEAT_BF16"), HasFeature("hw.optional.arm.FEAT_I8MM")};
}
#else
ArmFeatures Detect() { return {}; }
#endif
#endif

int64_t DetectTargets() {
  int64_t targets = HWY_STATIC_TARGET;
#if HWY_ARCH_X86
  const Cpuid basic(1), extended(7);
  // The instructions of a target, as Highway counts them. The system must also save the wider registers.
  const uint64_t saved = basic.Ecx({27}) ? SavedRegisters() : 0;
  // pclmul, fma, sse4.2, aes, avx, f16c; bmi, avx2, bmi2
  const bool avx2 = (saved & 0x6) == 0x6 && basic.Ecx({1, 12, 20, 25, 28, 29}) && extended.Ebx({3, 5, 8});
  if (avx2) targets |= HWY_AVX2;
  if (avx2 && Cpuid(7, 1).Eax({4})) targets |= kAvxVnni;
  const bool avx3 = avx2 && (saved & 0xE6) == 0xE6 && extended.Ebx({16, 17, 28, 30, 31});  // avx512f, dq, cd, bw, vl
  if (avx3) targets |= HWY_AVX3;
  // vbmi, vbmi2, gfni, vpclmulqdq, vnni, bitalg, vpopcntdq
  if (avx3 && extended.Ecx({1, 6, 8, 10, 11, 12, 14})) targets |= HWY_AVX3_DL;
#elif HWY_ARCH_ARM_A64
  targets |= HWY_NEON_WITHOUT_AES;
  const ArmFeatures has = Detect();
  if (has.aes && has.dot) targets |= HWY_NEON;
  if (has.aes && has.dot && has.half && has.bfloat16 && has.i8mm) targets |= HWY_NEON_BF16;
#endif
  const char* mask = std::getenv("SOL_RT_SIMD_TARGETS");
  if (mask != nullptr && *mask != '\0') targets &= std::strtoll(mask, nullptr, 0);
  return targets;
}

// The best target that is compiled in and supported.
int64_t BestTarget() {
  const int64_t usable = (SupportedTargets() & HWY_TARGETS) | HWY_STATIC_TARGET;
  return usable & -usable;
}

}  // namespace

int64_t SupportedTargets() {
  static const int64_t targets = DetectTargets();
  return targets;
}

bool RunsBaseline() {
#if HWY_ARCH_X86 && HWY_STATIC_TARGET == HWY_SSE4
  return Cpuid(1).Ecx({9, 19, 20});  // ssse3, sse4.1, sse4.2
#else
  return true;
#endif
}

bool PrefersAvxVnni() { return BestTarget() == HWY_AVX2 && (SupportedTargets() & kAvxVnni) != 0; }

const char* BestTargetName() {
  if (PrefersAvxVnni()) return "AVX2_VNNI";
  const int64_t best = BestTarget();
#if HWY_ARCH_ARM_A64
  if (best == HWY_NEON) return "NEON_DOT";  // arm_features-inl.h: more than Highway's name says
  if (best == HWY_NEON_BF16) return "NEON_I8MM";
#endif
  return hwy::TargetName(best);
}

}  // namespace sol

// The name of the instruction set in use, for diagnostics.
extern "C" SOL_EXPORT const char* SolOpsTarget() { return sol::BestTargetName(); }
