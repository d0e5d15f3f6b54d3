// Products of any number of rows, y [rows, N] = x [rows, K] W + bias + residual: quantize.cu makes codes of the rows, then matmul_row.cu
// multiplies one row and matmul_rows.cu several.
//
// Rows of an embedding have no file of their own: y [tokens, K], y[t, k] = W[k, ids[t]] of a block-major matrix W with K channels, where
// W[k, n] = s/32 (2 (16 q + 4 b + c) - (2 z + 2 center)), center 0, 6.5 or 8: common/nested_format.h. A thread block has one token; a warp takes
// one block of 32 channels at a time, a channel a lane.

#include "cuda/matmul/matmul.h"

#include "cuda/device/device.h"
#include "cuda/matmul/matmul_kernels.h"
#include "cuda/matmul/nibbles.h"

namespace sol::cuda {
namespace {

constexpr int kGatherThreads = 256;

// A block a token; of every block of channels a warp reads one code a lane.
template <int kBits>
__global__ void __launch_bounds__(kGatherThreads) GatherKernel(Weights w, const int64_t* ids, float* y) {
  const int64_t id = ids[blockIdx.x];
  const int lane = Lane();
  for (int block = WarpOfBlock(); block < w.K / kBlock; block += kGatherThreads / kWarp) {
    float* to = y + static_cast<int64_t>(blockIdx.x) * w.K + block * kBlock + lane;
    if (id < 0 || id >= w.N) {
      *to = __uint_as_float(0x7fc00000u);
      continue;
    }
    const int64_t at = static_cast<int64_t>(block) * w.N + id;
    int code = (w.base[at * 16 + lane / 2] >> lane % 2 * 4 & 15) << 4;
    if constexpr (kBits > 4) code |= (w.plane1[at * 8 + lane / 4] >> lane % 4 * 2 & 3) << 2;
    if constexpr (kBits > 6) code |= w.plane2[at * 8 + lane / 4] >> lane % 4 * 2 & 3;
    *to = HalfToFloat(w.scale[at]) * static_cast<float>(2 * code - TwiceZero<kBits>(w.zero[at])) * (1.0f / 32.0f);
  }
}

}  // namespace

void Multiply(Stream stream, const Weights& w, const Codes& codes, int64_t rows, const float* bias, const float* residual, float* y) {
  if (codes.quads != nullptr || codes.even_odd != nullptr) {
    MultiplyRow(stream, w, codes, bias, residual, y);
  } else {
    MultiplyRows(stream, w, codes, rows, bias, residual, y);
  }
}

void QuantizeAndMultiply(Stream stream, const Weights& w, Source source, ActiveChannels active, int64_t rows, const Codes& codes, const float* bias,
                         const float* residual, float* y) {
  const int64_t width = source.kind == Source::kGatedActivation ? 2 * static_cast<int64_t>(w.K) : w.K;
  for (int64_t first = 0; first < rows; first += kRowsAtOnce) {
    const int64_t count = rows - first < kRowsAtOnce ? rows - first : kRowsAtOnce;
    Quantize(stream, w, source, active, count, codes);
    Multiply(stream, w, codes, count, bias, residual, y);
    source.x += count * width;
    y += count * w.N;
    if (residual != nullptr) residual += count * w.N;
  }
}

void Gather(Stream stream, const Weights& w, const int64_t* ids, int64_t tokens, float* y) {
  Launch(w.bits == 4 ? GatherKernel<4> : w.bits == 6 ? GatherKernel<6> : GatherKernel<8>, dim3(static_cast<unsigned>(tokens)), kGatherThreads, 0,
         stream, w, ids, y);
}

int Multiprocessors() {
#ifdef SOL_CUDA_EMULATION
  return 8;
#else
  int device = 0, count = 0;
  if (cudaGetDevice(&device) != cudaSuccess || cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device) != cudaSuccess) return 1;
  return count;
#endif
}

}  // namespace sol::cuda
