// Calls one of llama.cpp's kernels some times, for counts.py to count the instructions:   llama_kernels KERNEL BITS CALLS
// The sizes are those of sol_kernels.cc.

#include <cstdint>
#include <cstdlib>
#include <cstring>

using Kernel = void(int n, float* s, size_t bs, const void* vx, const void* vy, int nr, int nc);

extern "C" {
Kernel ggml_gemv_q4_0_4x4_q8_0, ggml_gemv_q4_0_4x8_q8_0, ggml_gemv_q8_0_4x4_q8_0, ggml_gemv_q8_0_4x8_q8_0;
Kernel ggml_gemm_q4_0_4x4_q8_0, ggml_gemm_q4_0_4x8_q8_0, ggml_gemm_q8_0_4x4_q8_0, ggml_gemm_q8_0_4x8_q8_0;
}

// What the file refers to for processors without the instructions. Reaching one would spoil a count, so it ends the program.
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

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  constexpr int kChannels = 128, kOutputs = 512, kTokens = 128;
  Kernel* kernel = nullptr;
  const auto choose = [&](const char* name, Kernel* candidate) {
    if (std::strcmp(argv[1], name) == 0) kernel = candidate;
  };
  const bool four = std::strcmp(argv[2], "4") == 0;
  choose("gemv_4x4", four ? ggml_gemv_q4_0_4x4_q8_0 : ggml_gemv_q8_0_4x4_q8_0);
  choose("gemv_4x8", four ? ggml_gemv_q4_0_4x8_q8_0 : ggml_gemv_q8_0_4x8_q8_0);
  choose("gemm_4x4", four ? ggml_gemm_q4_0_4x4_q8_0 : ggml_gemm_q8_0_4x4_q8_0);
  choose("gemm_4x8", four ? ggml_gemm_q4_0_4x8_q8_0 : ggml_gemm_q8_0_4x8_q8_0);
  if (kernel == nullptr) return 2;
  // Large enough for Q8_0: 34 bytes a block of 32 weights.
  void* w = std::calloc(kChannels / 32 * kOutputs, 34);
  void* x = std::calloc(kChannels / 32 * kTokens, 34);
  float* y = static_cast<float*>(std::calloc(kTokens * kOutputs, sizeof(float)));
  const int tokens = std::strncmp(argv[1], "gemm", 4) == 0 ? kTokens : 1;
  for (int i = 0; i < std::atoi(argv[3]); ++i) kernel(kChannels, y, kOutputs, w, x, tokens, kOutputs);
  return 0;
}
