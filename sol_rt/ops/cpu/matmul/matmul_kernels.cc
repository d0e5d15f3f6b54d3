// Compiles the -inl.h files of this folder once for every SIMD target and picks the best set of kernels.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/matmul/matmul_kernels.cc"
#include <hwy/foreach_target.h>  // must come before the -inl files

#include <hwy/highway.h>

#include "cpu/codebook/row-inl.h"
#include "cpu/matmul/matmul_kernels.h"
#include "cpu/matmul/quantize-inl.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/matmul/tile-inl.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

const MatMulKernels* MatMulKernelSet() {
  static constexpr MatMulKernels kernels = {KeepLargest,     Quantize,       ListActive,      RowBlockMajor,
                                            RowChannelMajor, RowCodebook,    TileBlockMajor,  TileChannelMajor};
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

const MatMulKernels& BestMatMulKernels() {
  static const MatMulKernels& kernels = *SOL_BEST_TARGET(MatMulKernelSet)();
  return kernels;
}

}  // namespace sol
#endif
