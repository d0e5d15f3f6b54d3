// Norms between a layer's products. A thread block has a row; of q and k a warp has a head, or the block has all heads.
//
//   AddNormed   y = residual + (x - mean) / sqrt(variance + epsilon) * weight + bias, or without mean and bias
//   NormQk      rotates q and k where the layer norms after that, then norms every head [D], or all heads of q and all of k

#include "cuda/device/block.h"
#include "cuda/layer/norms.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;

struct NormShared {
  WarpSums sums;
};

__global__ void __launch_bounds__(kThreads) AddNormedKernel(Source norm, const float* residual, int n, float* y) {
  SOL_SHARED(NormShared, shared);
  const int64_t row = static_cast<int64_t>(blockIdx.x) * n;
  const int thread = static_cast<int>(threadIdx.x);
  const bool layer = norm.kind == Source::kLayerNorm;
  const float* x = norm.x + row;
  float sum = 0.0f, squares = 0.0f;
  if (layer) {
    for (int i = thread; i < n; i += kThreads) sum += x[i];
  }
  const float mean = layer ? BlockSum<kThreads>(sum, shared.sums) / static_cast<float>(n) : 0.0f;
  for (int i = thread; i < n; i += kThreads) squares += (x[i] - mean) * (x[i] - mean);
  squares = BlockSum<kThreads>(squares, shared.sums);
  const float scale = 1.0f / sqrtf(squares / static_cast<float>(n) + norm.epsilon);
  for (int i = thread; i < n; i += kThreads) {
    const float value = (x[i] - mean) * scale * norm.weight[i];
    y[row + i] = residual[row + i] + (layer ? value + norm.bias[i] : value);
  }
}

// The half-split rotation of a warp's head.
__device__ void RotateHead(const QkNormCall& call, int64_t position, float* row) {
  const int half = call.rotary_dim / 2;
  for (int i = Lane(); i < half; i += kWarp) {
    const float c = call.cos[position * half + i], s = call.sin[position * half + i], a = row[i], b = row[i + half];
    row[i] = a * c - b * s;
    row[i + half] = a * s + b * c;
  }
}

// A warp's head.
__device__ void NormHead(const QkNormCall& call, const float* weight, float* row) {
  float sum = 0.0f, squares = 0.0f;
  const int n = call.head_dim;
  if (call.layer_norm) {
    for (int i = Lane(); i < n; i += kWarp) sum += row[i];
  }
  const float mean = call.layer_norm ? WarpSum(sum) / static_cast<float>(n) : 0.0f;
  for (int i = Lane(); i < n; i += kWarp) squares += (row[i] - mean) * (row[i] - mean);
  const float scale = 1.0f / sqrtf(WarpSum(squares) / static_cast<float>(n) + call.epsilon);
  for (int i = Lane(); i < n; i += kWarp) row[i] = (row[i] - mean) * scale * weight[i];
}

__global__ void __launch_bounds__(kThreads) QkNormKernel(QkNormCall call) {
  SOL_SHARED(NormShared, shared);
  const int both = call.heads + call.kv_heads, thread = static_cast<int>(threadIdx.x);
  float* row = call.qkv + static_cast<int64_t>(blockIdx.x) * (both + call.kv_heads) * call.head_dim;
  int64_t position = 0;
  if (call.rotary_dim > 0) position = *call.past_length + blockIdx.x;
  if (position < 0 || position >= call.table_rows + (call.rotary_dim > 0 ? 0 : 1)) return;  // attention gives what is not a number
  for (int head = WarpOfBlock(); head < both; head += kWarps) {
    float* own = row + head * call.head_dim;
    if (call.rotary_dim > 0) {
      RotateHead(call, position, own);
      __syncwarp();
    }
    if (!call.by_row) NormHead(call, call.weight + head * call.head_dim, own);
  }
  if (!call.by_row) return;
  __syncthreads();
  for (int part = 0; part < 2; ++part) {
    const int begin = part == 0 ? 0 : call.heads * call.head_dim, n = (part == 0 ? call.heads : call.kv_heads) * call.head_dim;
    float sum = 0.0f, squares = 0.0f;
    if (call.layer_norm) {
      for (int i = thread; i < n; i += kThreads) sum += row[begin + i];
    }
    const float mean = call.layer_norm ? BlockSum<kThreads>(sum, shared.sums) / static_cast<float>(n) : 0.0f;
    for (int i = thread; i < n; i += kThreads) squares += (row[begin + i] - mean) * (row[begin + i] - mean);
    const float scale = 1.0f / sqrtf(BlockSum<kThreads>(squares, shared.sums) / static_cast<float>(n) + call.epsilon);
    for (int i = thread; i < n; i += kThreads) row[begin + i] = (row[begin + i] - mean) * scale * call.weight[begin + i];
  }
}

}  // namespace

void AddNormed(Stream stream, const Source& norm, const float* residual, int64_t rows, int64_t n, float* y) {
  Launch(AddNormedKernel, dim3(static_cast<unsigned>(rows)), kThreads, 0, stream, norm, residual, static_cast<int>(n), y);
}

void NormQk(Stream stream, const QkNormCall& call) {
  Launch(QkNormKernel, dim3(static_cast<unsigned>(call.tokens)), kThreads, 0, stream, call);
}

}  // namespace sol::cuda
