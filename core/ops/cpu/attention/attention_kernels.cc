// Compiles the arithmetic of attention once a SIMD target and picks the best set.

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/attention/attention_kernels.cc"
#include <hwy/foreach_target.h>  // must come before the -inl files

#include <hwy/highway.h>

#include "cpu/attention/attention_append-inl.h"
#include "cpu/attention/attention_decode-inl.h"
#include "cpu/attention/attention_kernels.h"
#include "cpu/attention/attention_prefill-inl.h"
#include "cpu/simd/target.h"

HWY_BEFORE_NAMESPACE();
namespace sol {
namespace HWY_NAMESPACE {

const AttentionKernels* AttentionKernelSet() {
  static constexpr AttentionKernels kernels = {
      AppendPage,    PrepareQueries,   WeighTokens,          ScoreTokens,        SelectTokens, DecodeChunk,
      CombineChunks, PrefillPositions, PrefillScratchFloats, PrefillStateFloats, PrefillBlock, CombineSplits,
  };
  return &kernels;
}

}  // namespace HWY_NAMESPACE
}  // namespace sol
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sol {

const AttentionKernels& BestAttentionKernels() {
  static const AttentionKernels& kernels = *SOL_BEST_TARGET(AttentionKernelSet)();
  return kernels;
}

}  // namespace sol
#endif
