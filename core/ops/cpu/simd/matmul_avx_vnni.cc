// Compiles the products of cpu/matmul once more, for AVX2 with AVX-VNNI (x86_features.h).

#include <hwy/detect_targets.h>

#include "cpu/simd/avx_vnni.h"

#if SOL_HAS_AVX_VNNI
// One pass, for AVX2.
#undef HWY_BASELINE_TARGETS
#define HWY_BASELINE_TARGETS HWY_AVX2
#undef HWY_DISABLED_TARGETS
#define HWY_DISABLED_TARGETS ~HWY_AVX2
#define SOL_AVX_VNNI 1

#include <hwy/highway.h>

#include "cpu/codebook/row-inl.h"
#include "cpu/matmul/row-inl.h"
#include "cpu/matmul/tile-inl.h"

static_assert(HWY_TARGETS == HWY_AVX2 && HWY_TARGET == HWY_AVX2, "one pass");

namespace sol {

void UseAvxVnni(MatMulKernels& kernels) {
  using namespace SOL_NAMESPACE;
  kernels.row_block_major = RowBlockMajor;
  kernels.row_channel_major = RowChannelMajor;
  kernels.row_codebook = RowCodebook;
  kernels.tile_block_major = TileBlockMajor;
  kernels.tile_channel_major = TileChannelMajor;
}

}  // namespace sol
#endif
