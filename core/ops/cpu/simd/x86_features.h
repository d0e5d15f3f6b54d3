// Products of bytes that x86 has, by target:
//
//   AVX3_DL          SOL_BYTE_DOT: sums of four unsigned by signed bytes, vpdpbusd
//   AVX2_VNNI        SOL_BYTE_DOT: the same on 256 bits, on Intel's processors with AVX-VNNI but without AVX-512 (Alder Lake and later).
//                    Highway has no such target: it is AVX2 in a file that sets SOL_AVX_VNNI, with the instructions as inline assembly
//   SSE4, AVX2, AVX3 SOL_BYTE_PAIRS: sums of two such products, in 16 bits
//
// Functions that depend on these macros are in SOL_NAMESPACE, as AVX2 and AVX2_VNNI have HWY_NAMESPACE in common.
// Include after <hwy/highway.h>. The macros have their values where they are used, target by target.
#pragma once

#ifndef SOL_AVX_VNNI
#define SOL_AVX_VNNI 0
#endif

#if SOL_AVX_VNNI
#define SOL_NAMESPACE N_AVX2_VNNI
#else
#define SOL_NAMESPACE HWY_NAMESPACE
#endif

#define SOL_BYTE_DOT (SOL_AVX_VNNI || HWY_TARGET <= HWY_AVX3_DL)
#define SOL_BYTE_PAIRS (!SOL_BYTE_DOT && HWY_TARGET <= HWY_SSE4)
