// Computations of the threads of a block together: sums, prefix sums, the k-th largest of many keys, and the block that ends last. Every function is
// called by all threads of a block of kThreads.
#pragma once

#include "cuda/device/device.h"

namespace sol::cuda {

__device__ __forceinline__ float WarpSum(float value) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) value += __shfl_xor_sync(kAllLanes, value, by);
  return value;
}
__device__ __forceinline__ int WarpSum(int value) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) value += __shfl_xor_sync(kAllLanes, value, by);
  return value;
}
__device__ __forceinline__ float WarpMax(float value) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, by));
  return value;
}
__device__ __forceinline__ uint32_t WarpMax(uint32_t value) {
#pragma unroll
  for (int by = kWarp / 2; by > 0; by /= 2) {
    const uint32_t other = __shfl_xor_sync(kAllLanes, value, by);
    value = value > other ? value : other;
  }
  return value;
}

struct WarpSums {
  float sums[kWarp];
};

// The sum over the block, for every thread.
template <int kThreads>
__device__ float BlockSum(float value, WarpSums& shared) {
  constexpr int kWarps = kThreads / kWarp;
  value = WarpSum(value);
  if (Lane() == 0) shared.sums[WarpOfBlock()] = value;
  __syncthreads();
  const float total = WarpSum(Lane() < kWarps ? shared.sums[Lane()] : 0.0f);
  __syncthreads();
  return total;
}

struct WarpCounts {
  uint32_t counts[kWarp];
};

// The sum of the threads' values before this one; `total`: of all.
template <int kThreads>
__device__ uint32_t BlockPrefix(uint32_t value, WarpCounts& shared, uint32_t& total) {
  uint32_t inclusive = value;
#pragma unroll
  for (int by = 1; by < kWarp; by *= 2) {
    const uint32_t other = __shfl_up_sync(kAllLanes, inclusive, static_cast<unsigned>(by));
    if (Lane() >= by) inclusive += other;
  }
  if (Lane() == kWarp - 1) shared.counts[WarpOfBlock()] = inclusive;
  __syncthreads();
  uint32_t before = 0;
  total = 0;
  for (int i = 0; i < kThreads / kWarp; ++i) {
    if (i < WarpOfBlock()) before += shared.counts[i];
    total += shared.counts[i];
  }
  __syncthreads();
  return before + inclusive - value;
}

// Keys of 31 bits are told apart by 11, 10 and 10 of them in turn: of floats, by the exponent and three bits of the mantissa first.
constexpr int kFirstBins = 2048;
constexpr int kFirstShift = 20;

struct SelectMemory {
  uint32_t bins[kFirstBins];
  WarpCounts counts;
  uint32_t bin, above;
};

// Of `count` bins, from the last one down, the one that holds the k-th entry, k >= 1, and how many entries are in higher ones.
template <int kThreads>
__device__ void FindBin(int count, uint32_t k, SelectMemory& memory) {
  const int share = count / kThreads > 1 ? count / kThreads : 1;
  const int first = static_cast<int>(threadIdx.x) * share;  // counted from the last bin
  uint32_t mine = 0, total;
  if (first < count) {
    for (int i = first; i < first + share; ++i) mine += memory.bins[count - 1 - i];
  }
  uint32_t above = BlockPrefix<kThreads>(mine, memory.counts, total);
  if (first < count && above < k && k <= above + mine) {
    int i = first;
    while (above + memory.bins[count - 1 - i] < k) above += memory.bins[count - 1 - i++];
    memory.bin = static_cast<uint32_t>(count - 1 - i);
    memory.above = above;
  }
  __syncthreads();
}

struct Selected {
  uint32_t key;    // the k-th largest
  uint32_t above;  // how many are larger
  uint32_t equal;  // how many equal it, at least one
};

// The k-th largest of the keys, k >= 1 and at most their number: key(i, value) reports for 0 <= i < n whether i has one, below 2^31.
template <int kThreads, class Key>
__device__ Selected SelectLargest(int64_t n, uint32_t k, const Key& key, SelectMemory& memory) {
  uint32_t prefix = 0, known = 0, above = 0;
#pragma unroll 1
  for (int pass = 0; pass < 3; ++pass) {
    const int shift = pass == 0 ? kFirstShift : pass == 1 ? 10 : 0;
    const int bins = pass == 0 ? kFirstBins : 1024;
    for (int i = static_cast<int>(threadIdx.x); i < bins; i += kThreads) memory.bins[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < n; i += kThreads) {
      uint32_t value = 0;
      if (key(i, value) && (value & known) == prefix) atomicAdd(&memory.bins[value >> shift & static_cast<uint32_t>(bins - 1)], 1u);
    }
    __syncthreads();
    FindBin<kThreads>(bins, k - above, memory);
    prefix |= memory.bin << shift;
    known |= static_cast<uint32_t>(bins - 1) << shift;
    above += memory.above;
  }
  const Selected selected = {prefix, above, memory.bins[memory.bin]};
  __syncthreads();  // the memory may be used again
  return selected;
}

// True if this block is the last of `blocks` to come here; what the others wrote before is then there to be read, past the first-level cache. One
// thread's fences between barriers are the block's, also where fences are of acquire and release alone.
__device__ __forceinline__ bool LastBlock(uint32_t* counter, uint32_t blocks, bool& shared) {
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    shared = atomicAdd(counter, 1u) == blocks - 1;
    __threadfence();
  }
  __syncthreads();
  return shared;
}

}  // namespace sol::cuda
