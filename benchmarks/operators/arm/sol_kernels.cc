// Calls one of our kernels some times, for counts.py to count the instructions:   sol_kernels KERNEL BITS CALLS
// Without arguments times every kernel on the processor that runs it, with weights from its caches, by one thread.

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/simd/target.h"
#include "timing.h"

namespace {

constexpr size_t kChannels = 128, kOutputs = 512, kTokens = 128, kBlocks = kChannels / sol::kBlock;

// Instructions depend on no value, so every array is filled as cheaply as can be.
template <class T>
T* Filled(size_t count, int byte) {
  void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
  std::memset(memory, byte, count * sizeof(T));
  return static_cast<T*>(memory);
}

struct Product {
  explicit Product(int bits) {
    w.bits = bits;
    w.K = kChannels;
    w.N = kOutputs;
    w.base = Filled<uint8_t>(kChannels * kOutputs / 2, 0x5A);
    w.scale = Filled<uint16_t>(kBlocks * kOutputs, 0x2C);
    w.zero = Filled<uint8_t>(kBlocks * kOutputs, 120);
    if (bits > 4) w.plane1 = Filled<uint8_t>(kChannels * kOutputs / 4, 0x5A);
    if (bits > 6) w.plane2 = Filled<uint8_t>(kChannels * kOutputs / 4, 0x5A);
    if (bits == 3) {
      w.low = Filled<uint8_t>(kChannels * kOutputs / 4, 0x5A);
      w.high = Filled<uint8_t>(kChannels * kOutputs / 8, 0x5A);
      w.block_scale = Filled<uint8_t>(kBlocks * kOutputs, 0x5A);
      w.output_scale = Filled<uint16_t>(kOutputs, 0x2C);
      w.codebook = Filled<int8_t>(sol::kCodebookSize, 1);
    }
    x.halves = w.Halves();
    const size_t codes = kTokens * x.halves * kChannels;
    x.natural = Filled<int8_t>(codes, 1);
    x.even_odd = Filled<int8_t>(codes, 1);
    x.phased = Filled<int8_t>(codes, 1);
    x.step = Filled<float>(kTokens * kBlocks, 0x3C);
    x.sum = Filled<float>(kTokens * kBlocks, 0x3C);
    active.rows = Filled<uint8_t>(kChannels + sol::ActiveQuads::kSlack, 0);
    active.codes = Filled<int8_t>(x.halves * (kChannels + sol::ActiveQuads::kSlack), 0);
    active.begin = Filled<uint32_t>(kBlocks + 1, 0);
    kernels.list_active(x, kChannels, active);
    y = Filled<float>(kTokens * kOutputs, 0);
  }

  void Call(const std::string& kernel) {
    if (kernel == "row_block_major") {
      kernels.row_block_major(w, x, 0, kOutputs, y);
    } else if (kernel == "row_channel_major") {
      (w.bits == 3 ? kernels.row_codebook : kernels.row_channel_major)(w, x, active, 0, kBlocks, 0, kOutputs, y);
    } else {
      (kernel == "tile_block_major" ? kernels.tile_block_major : kernels.tile_channel_major)(w, x, 0, kTokens, {0, kBlocks, 0, sol::kTile}, y, sol::kTile);
    }
  }

  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  sol::Nested w;
  sol::Activations x;
  sol::ActiveQuads active;
  float* y;
};

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    std::printf("| %s | bits | weights a nanosecond |\n|---|--:|--:|\n", sol::BestTargetName());
    for (const int bits : {3, 4, 6, 8}) {
      Product product(bits);
      for (const char* kernel : {"row_block_major", "row_channel_major", "tile_block_major", "tile_channel_major"}) {
        if (bits == 3 && std::strstr(kernel, "block") != nullptr) continue;  // 3 bits are channel-major
        const bool row = std::strncmp(kernel, "row", 3) == 0;
        TimeKernel(kernel, bits, static_cast<double>(kChannels * (row ? kOutputs : sol::kTile * kTokens)), [&] { product.Call(kernel); });
      }
    }
    return 0;
  }
  if (argc != 4) return 2;
  Product product(std::atoi(argv[2]));
  for (int i = 0; i < std::atoi(argv[3]); ++i) product.Call(argv[1]);
  return 0;
}
