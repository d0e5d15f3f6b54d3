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
#include "cpu/simd/avx_vnni.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace SOL_NAMESPACE {

const MatMulKernels* MatMulKernelSet() {
  static constexpr MatMulKernels kernels = {KeepLargest,     Quantize,       ListActive,      RowBlockMajor,
                                            RowChannelMajor, RowCodebook,    TileBlockMajor,  TileChannelMajor};
  return &kernels;
}

}  // namespace SOL_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

BlockPlace PlaceInCopy(const uint8_t* packed, size_t N, size_t first, size_t end, size_t block, size_t n) {
  const size_t panel = n / kPanel * kPanel, width = std::min(kPanel, N - panel), in = n - panel;
  const uint8_t* record = packed + (first * N + (end - first) * panel + (block - first) * width) * kPackedBytes;
  return {record + in / 2, reinterpret_cast<const uint16_t*>(record + width * 16) + in, record + width * 18 + in, width / 2};
}

const MatMulKernels& BestMatMulKernels() {
  static const MatMulKernels kernels = []() {
    MatMulKernels best = *SOL_BEST_TARGET(MatMulKernelSet)();
#if SOL_HAS_AVX_VNNI
    if (PrefersAvxVnni()) UseAvxVnni(best);
#endif
    return best;
  }();
  return kernels;
}

}  // namespace sol
#endif
