// Features of Highway's targets for Arm. Highway has no target with the dot product alone, and none with products of matrices of bytes:
//
//   NEON_WITHOUT_AES   what every arm64 has
//   NEON               SOL_ARM_DOT: the dot product of four bytes too (Cortex-A55, A76 and X1, Neoverse N1, Apple M1)
//   NEON_BF16          SOL_ARM_I8MM: products of matrices of bytes too (Cortex-A710 and X2, Neoverse V1 and N2, Apple M2)
//
// DetectTargets (target.cc) asks the processor for the same. Include after <hwy/highway.h> and before HWY_BEFORE_NAMESPACE.

#if defined(SOL_ARM_FEATURES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SOL_ARM_FEATURES_INL_H_
#undef SOL_ARM_FEATURES_INL_H_
#else
#define SOL_ARM_FEATURES_INL_H_
#endif

#undef SOL_ARM_DOT
#undef SOL_ARM_I8MM

#if HWY_ARCH_ARM_A64 && HWY_TARGET < HWY_STATIC_TARGET && (HWY_TARGET == HWY_NEON || HWY_TARGET == HWY_NEON_BF16)
// Highway's string of these targets, and what is added.
#undef HWY_TARGET_STR
#define SOL_ARM_DOT 1
#if HWY_TARGET == HWY_NEON_BF16
#define HWY_TARGET_STR HWY_TARGET_STR_FP16 "+bf16+dotprod+i8mm" HWY_TARGET_STR_NEON
#define SOL_ARM_I8MM 1
#else
#define HWY_TARGET_STR HWY_TARGET_STR_NEON "+dotprod"
#define SOL_ARM_I8MM 0
#endif

#else  // what the compiler's flags say
#ifdef __ARM_FEATURE_DOTPROD
#define SOL_ARM_DOT HWY_ARCH_ARM_A64
#else
#define SOL_ARM_DOT 0
#endif
#ifdef __ARM_FEATURE_MATMUL_INT8
#define SOL_ARM_I8MM HWY_ARCH_ARM_A64
#else
#define SOL_ARM_I8MM 0
#endif
#endif

#endif  // SOL_ARM_FEATURES_INL_H_
