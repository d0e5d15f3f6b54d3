// Compiles the arithmetic once a SIMD target and picks the best set.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul/matmul_kernels.cc"
#include <hwy/foreach_target.h>  // must come before the -inl files

#include <hwy/highway.h>

#include "cpu/elementwise/activate-inl.h"
#include "cpu/elementwise/normalize-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/quantize-inl.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/matmul/tile-inl.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

const Kernels* KernelSet() {
  static constexpr Kernels kernels = {KeepLargest,    Quantize,        ListActive,     RowBlockMajor,
                                      RowChannelMajor, TileBlockMajor, TileChannelMajor, Activate,       Normalize};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

const Kernels& BestKernels() {
  static const Kernels& kernels = *SOL_BEST_TARGET(KernelSet)();
  return kernels;
}

}  // namespace sol
#endif
