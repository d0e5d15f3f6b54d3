// Device functions besides the language: instructions that have no name in C++, and launches. With SOL_CUDA_EMULATION the host's compiler builds the
// same kernels for tests: runtime_tests/native/cuda_emulation.h.
#pragma once

#ifdef SOL_CUDA_EMULATION
#include <cuda_emulation.h>
#else
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace sol::cuda {

using Stream = void*;  // cudaStream_t; the host side of operators is compiled without CUDA's headers

constexpr int kWarp = 32;
constexpr uint32_t kAllLanes = 0xffffffffu;

#ifdef SOL_CUDA_EMULATION

#define SOL_SHARED(Type, name)                      \
  static emulation::Shared<Type> name##_of_a_block; \
  Type& name = name##_of_a_block.Get()
#define SOL_DYNAMIC_SHARED(name) char* name = static_cast<char*>(emulation::Machine::Get().Dynamic())

inline float HalfToFloat(uint16_t half) { return emulation::FloatOfHalf(half); }
inline uint16_t HalfFromFloat(float value) { return emulation::HalfOfFloat(value); }

// c plus the products of a's unsigned bytes and b's signed ones.
inline int DotBytes(uint32_t a, uint32_t b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int>(a >> 8 * i & 0xFF) * static_cast<int8_t>(b >> 8 * i);
  return c;
}

// The same of signed bytes both.
inline int DotSignedBytes(uint32_t a, uint32_t b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> 8 * i) * static_cast<int8_t>(b >> 8 * i);
  return c;
}

// The matrix instruction m16n8k32 on fragments as PTX lays them out: c += a b, a of signed bytes, b of unsigned ones.
inline void MultiplyTile(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Fragments all(a, b);
  for (unsigned i = 0; i < 4; ++i) {
    for (unsigned word = 0; word < 8; ++word) c[i] = DotBytes(all.Right(word, i), all.Left(word, i), c[i]);
  }
}

// m16n8k16 of float16: c += a b in float32.
inline void MultiplyHalves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  const emulation::Fragments all(a, b);
  for (unsigned i = 0; i < 4; ++i) {
    float sum = 0.0f;
    for (unsigned word = 0; word < 8; ++word) {
      const uint32_t left = all.Left(word, i), right = all.Right(word, i);
      sum += HalfToFloat(static_cast<uint16_t>(left)) * HalfToFloat(static_cast<uint16_t>(right));
      sum += HalfToFloat(static_cast<uint16_t>(left >> 16)) * HalfToFloat(static_cast<uint16_t>(right >> 16));
    }
    c[i] += sum;
  }
}

template <class... P, class... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, Stream, A&&... arguments) {
  emulation::Machine::Get().Launch(grid, static_cast<unsigned>(threads), shared_bytes, [&] { kernel(static_cast<P>(arguments)...); });
}

#else

#define SOL_SHARED(Type, name) __shared__ Type name
#define SOL_DYNAMIC_SHARED(name) extern __shared__ __align__(16) char name[]

__device__ __forceinline__ float HalfToFloat(uint16_t half) { return __half2float(__ushort_as_half(half)); }
__device__ __forceinline__ uint16_t HalfFromFloat(float value) { return __half_as_ushort(__float2half_rn(value)); }

__device__ __forceinline__ int DotBytes(uint32_t a, uint32_t b, int c) {
  int sum;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

__device__ __forceinline__ int DotSignedBytes(uint32_t a, uint32_t b, int c) {
  int sum;
  asm("dp4a.s32.s32 %0, %1, %2, %3;" : "=r"(sum) : "r"(a), "r"(b), "r"(c));
  return sum;
}

// All lanes of a warp meet at a matrix instruction: volatile keeps compilers from moving it to where only some of them go.
__device__ __forceinline__ void MultiplyTile(int (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.u8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  // Turing has a quarter of it, m8n8k16.
#pragma unroll
  for (int upper = 0; upper < 2; ++upper) {
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      asm volatile(
          "mma.sync.aligned.m8n8k16.row.col.s32.s8.u8.s32 {%0, %1}, {%2}, {%3}, {%0, %1};"
          : "+r"(c[2 * upper]), "+r"(c[2 * upper + 1])
          : "r"(a[upper + 2 * k]), "r"(b[k]));
    }
  }
#endif
}

__device__ __forceinline__ void MultiplyHalves(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 800
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
#pragma unroll
  for (int k = 0; k < 2; ++k) {
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[2 * k]), "r"(a[2 * k + 1]), "r"(b[k]));
  }
#endif
}

template <class... P, class... A>
void Launch(void (*kernel)(P...), dim3 grid, int threads, size_t shared_bytes, Stream stream, A&&... arguments) {
  kernel<<<grid, threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(static_cast<P>(arguments)...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("a CUDA kernel could not be started: ") + cudaGetErrorString(error) +
                             "; check the driver, or use --provider cpu");
  }
}

#endif

__device__ __forceinline__ int Lane() { return static_cast<int>(threadIdx.x) % kWarp; }
__device__ __forceinline__ int WarpOfBlock() { return static_cast<int>(threadIdx.x) / kWarp; }

__host__ __device__ inline int64_t DivideUp(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace sol::cuda
