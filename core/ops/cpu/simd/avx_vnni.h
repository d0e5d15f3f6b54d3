// The kernels of products for AVX2 with AVX-VNNI, where the library has AVX2's. Include after <hwy/highway.h> or <hwy/detect_targets.h>.
#pragma once

#include "cpu/matmul/matmul_kernels.h"

// The build sets SOL_ASSEMBLES_AVX_VNNI where the assembler knows the instructions: GNU's does from binutils 2.36 on.
#ifndef SOL_ASSEMBLES_AVX_VNNI
#define SOL_ASSEMBLES_AVX_VNNI 0
#endif
#define SOL_HAS_AVX_VNNI (SOL_ASSEMBLES_AVX_VNNI && HWY_ARCH_X86 && (HWY_TARGETS & HWY_AVX2) != 0)

namespace sol {

// Puts them in the place of those for AVX2. The kernels that multiply no bytes stay.
void UseAvxVnni(MatMulKernels& kernels);

}  // namespace sol
