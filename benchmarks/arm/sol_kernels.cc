// Calls one of our kernels some times, for counts.py to count the instructions:   sol_kernels KERNEL BITS CALLS

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/simd/target.h"

namespace {

constexpr size_t kChannels = 128, kOutputs = 512, kTokens = 128, kBlocks = kChannels / sol::kBlock;

// Instructions depend on no value, so every array is filled as cheaply as can be.
template <class T>
T* Filled(size_t count, int byte) {
  void* memory = std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64);
  std::memset(memory, byte, count * sizeof(T));
  return static_cast<T*>(memory);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc == 1) {
    std::puts(sol::BestTargetName());
    return 0;
  }
  if (argc != 4) return 2;
  const std::string kernel = argv[1];
  const int calls = std::atoi(argv[3]);
  sol::Nested w;
  w.bits = std::atoi(argv[2]);
  w.K = kChannels;
  w.N = kOutputs;
  w.base = Filled<uint8_t>(kChannels * kOutputs / 2, 0x5A);
  w.scale = Filled<uint16_t>(kBlocks * kOutputs, 0x2C);
  w.zero = Filled<uint8_t>(kBlocks * kOutputs, 120);
  if (w.bits > 4) w.plane1 = Filled<uint8_t>(kChannels * kOutputs / 4, 0x5A);
  if (w.bits > 6) w.plane2 = Filled<uint8_t>(kChannels * kOutputs / 4, 0x5A);

  const size_t halves = w.Halves(), codes = kTokens * halves * kChannels;
  sol::Activations x;
  x.halves = halves;
  x.natural = Filled<int8_t>(codes, 1);
  x.even_odd = Filled<int8_t>(codes, 1);
  x.phased = Filled<int8_t>(codes, 1);
  x.step = Filled<float>(kTokens * kBlocks, 0x3C);
  x.sum = Filled<float>(kTokens * kBlocks, 0x3C);
  sol::ActiveQuads active;
  active.rows = Filled<uint8_t>(kChannels + sol::ActiveQuads::kSlack, 0);
  active.codes = Filled<int8_t>(halves * (kChannels + sol::ActiveQuads::kSlack), 0);
  active.begin = Filled<uint32_t>(kBlocks + 1, 0);
  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  kernels.list_active(x, kChannels, active);
  float* y = Filled<float>(kTokens * kOutputs, 0);

  for (int i = 0; i < calls; ++i) {
    if (kernel == "row_block_major") {
      kernels.row_block_major(w, x, 0, kOutputs, y);
    } else if (kernel == "row_channel_major") {
      kernels.row_channel_major(w, x, active, 0, kBlocks, 0, kOutputs, y);
    } else {
      const auto tile = kernel == "tile_block_major" ? kernels.tile_block_major : kernels.tile_channel_major;
      for (size_t n = 0; n < kOutputs; n += sol::kTile) tile(w, x, 0, kTokens, n, y);
    }
  }
  return 0;
}
