// Compiles the -inl.h files of this folder once for every SIMD target and picks the best set of kernels.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/elementwise/elementwise_kernels.cc"
#include <hwy/foreach_target.h>  // must come before the -inl files

#include <hwy/highway.h>

#include "cpu/elementwise/activate-inl.h"
#include "cpu/elementwise/elementwise_kernels.h"
#include "cpu/elementwise/normalize-inl.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

const ElementwiseKernels* ElementwiseKernelSet() {
  static constexpr ElementwiseKernels kernels = {Activate, Normalize};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

const ElementwiseKernels& BestElementwiseKernels() {
  static const ElementwiseKernels& kernels = *SOL_BEST_TARGET(ElementwiseKernelSet)();
  return kernels;
}

}  // namespace sol
#endif
