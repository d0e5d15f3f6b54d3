// Calls one of llama.cpp's kernels some times, for counts.py to count the instructions:   llama_kernels KERNEL BITS CALLS
// Without arguments times every kernel on the processor that runs it. The sizes are those of sol_kernels.cc.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>

#include "timing.h"

using Kernel = void(int n, float* s, size_t bs, const void* vx, const void* vy, int nr, int nc);

extern "C" {
Kernel ggml_gemv_q4_0_4x4_q8_0, ggml_gemv_q4_0_4x8_q8_0, ggml_gemv_q8_0_4x4_q8_0, ggml_gemv_q8_0_4x8_q8_0;
Kernel ggml_gemm_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x8_q8_0, ggml_gemm_q8_0_4x4_q8_0, ggml_gemm_q8_0_4x8_q8_0;
}

// Functions that the file refers to for processors without the instructions. Reaching one would spoil a count, so it ends the program.
#define SOL_UNREACHED(name) \
  extern "C" void name() { std::abort(); }
SOL_UNREACHED(ggml_gemm_q1_0_4x4_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q1_0_4x8_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q4_0_4x4_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q4_0_4x8_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q4_0_8x8_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q4_K_8x8_q8_K_generic)
SOL_UNREACHED(ggml_gemm_q5_K_8x8_q8_K_generic)
SOL_UNREACHED(ggml_gemm_q6_K_8x8_q8_K_generic)
SOL_UNREACHED(ggml_gemm_q8_0_4x4_q8_0_generic)
SOL_UNREACHED(ggml_gemm_q8_0_4x8_q8_0_generic)
SOL_UNREACHED(ggml_gemv_q4_0_8x8_q8_0_generic)

namespace {

constexpr int kChannels = 128, kOutputs = 512, kTile = 64, kTokens = 128;

Kernel* Find(const char* name, bool four) {
  const auto is = [&](const char* candidate) { return std::strcmp(name, candidate) == 0; };
  if (is("gemv_4x4")) return four ? ggml_gemv_q4_0_4x4_q8_0 : ggml_gemv_q8_0_4x4_q8_0;
  if (is("gemv_4x8")) return four ? ggml_gemv_q4_0_4x8_q8_0 : ggml_gemv_q8_0_4x8_q8_0;
  if (is("gemm_4x4")) return four ? ggml_gemm_q4_0_4x4_q8_0 : ggml_gemm_q8_0_4x4_q8_0;
  if (is("gemm_4x8")) return four ? ggml_gemm_q4_0_4x8_q8_0 : ggml_gemm_q8_0_4x8_q8_0;
  return nullptr;
}

}  // namespace

int main(int argc, char** argv) {
  // Large enough for Q8_0: 34 bytes a block of 32 weights.
  void* w = std::calloc(kChannels / 32 * kOutputs, 34);
  void* x = std::calloc(kChannels / 32 * kTokens, 34);
  float* y = static_cast<float*>(std::calloc(kTokens * kOutputs, sizeof(float)));
  const auto call = [&](Kernel* kernel, bool many) {
    kernel(kChannels, y, kOutputs, w, x, many ? kTokens : 1, many ? kTile : kOutputs);
  };
  if (argc == 1) {
    std::printf("| llama.cpp | bits | weights a nanosecond |\n|---|--:|--:|\n");
#ifdef __ARM_FEATURE_MATMUL_INT8
    const auto names = {"gemv_4x4", "gemv_4x8", "gemm_4x4", "gemm_4x8"};
#else
    const auto names = {"gemv_4x4", "gemv_4x8", "gemm_4x4"};
#endif
    for (const int bits : {4, 8}) {
      for (const char* name : names) {
        const bool many = name[3] == 'm';
        Kernel* kernel = Find(name, bits == 4);
        TimeKernel(name, bits, kChannels * (many ? static_cast<double>(kTile) * kTokens : kOutputs), [&] { call(kernel, many); });
      }
    }
    return 0;
  }
  Kernel* kernel = argc == 4 ? Find(argv[1], std::strcmp(argv[2], "4") == 0) : nullptr;
  if (kernel == nullptr) return 2;
  for (int i = 0; i < std::atoi(argv[3]); ++i) call(kernel, argv[1][3] == 'm');
  return 0;
}
