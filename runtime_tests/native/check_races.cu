// Small kernels of which it is known whether they have a race, by name: the first argument. Ends as the emulation ends.
#include <cstdio>
#include <map>
#include <string>

#include "cuda/device/block.h"

namespace {

using sol::cuda::Launch;

constexpr int kThreads = 64;
constexpr int kBlocks = 3;

struct Numbers {
  uint32_t numbers[kThreads];
  uint8_t bytes[kThreads];
  bool last;
};

struct Memory {
  uint32_t numbers[kBlocks * kThreads];
  uint32_t counter;
  uint32_t sum;
};

template <bool kBarrier>
void ReadNeighbour(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  shared.numbers[threadIdx.x] = threadIdx.x;
  if (kBarrier) __syncthreads();
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = shared.numbers[(threadIdx.x + 32) % kThreads];
}

template <bool kBarrier>
void WriteWhatOthersRead(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  shared.numbers[threadIdx.x] = 1;
  __syncthreads();
  uint32_t sum = 0;
  for (uint32_t number : shared.numbers) sum += number;
  if (kBarrier) __syncthreads();
  shared.numbers[threadIdx.x] = sum;
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = sum;
}

// A shuffle makes lanes meet, and orders no memory.
template <bool kSync>
void ReadLane(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  const uint32_t lane = threadIdx.x % 32;
  shared.numbers[threadIdx.x] = __shfl_xor_sync(0xffffffffu, lane, 1);
  if (kSync) __syncwarp();
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = shared.numbers[threadIdx.x / 32 * 32 + (lane + 1) % 32];
}

void SyncWarpIsOfOneWarp(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  shared.numbers[threadIdx.x] = 1;
  __syncwarp();
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = shared.numbers[(threadIdx.x + 32) % kThreads];
}

void WriteNeighbouringBytes(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  shared.bytes[threadIdx.x] = 1;
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = shared.bytes[threadIdx.x];
}

void WriteOneWord(Memory* memory) { memory->sum = threadIdx.x % 32 + blockIdx.x; }

template <bool kAtomic>
void Count(Memory* memory) {
  if (threadIdx.x != 0) return;
  if (kAtomic) atomicAdd(&memory->sum, 1u);
  if (!kAtomic) ++memory->sum;
}

void ReadWhatIsCounted(Memory* memory) {
  if (threadIdx.x == 0) atomicAdd(&memory->sum, 1u);
  if (threadIdx.x == 32) memory->numbers[blockIdx.x] = memory->sum;
}

void AddUp(Memory* memory) {
  memory->sum = 0;
  for (uint32_t number : memory->numbers) memory->sum += number;
}

void LastBlockAddsUp(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = 1;
  if (!sol::cuda::LastBlock(&memory->counter, gridDim.x, shared.last)) return;
  if (threadIdx.x == 40) AddUp(memory);
}

// As LastBlock, with one of its fences or its first barrier left out.
template <bool kBefore, bool kAfter, bool kBarrier>
void LastBlockWithout(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = 1;
  if (kBarrier) __syncthreads();
  if (threadIdx.x == 0) {
    if (kBefore) __threadfence();
    shared.last = atomicAdd(&memory->counter, 1u) == gridDim.x - 1;
    if (kAfter) __threadfence();
  }
  __syncthreads();
  if (shared.last && threadIdx.x == 40) AddUp(memory);
}

// Every thread fences for itself, before the barrier: enough on a device, whose fences have one order of all, and not what is taken for
// granted here.
void LastBlockOfOwnFences(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  memory->numbers[blockIdx.x * kThreads + threadIdx.x] = 1;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) shared.last = atomicAdd(&memory->counter, 1u) == gridDim.x - 1;
  __syncthreads();
  if (shared.last) __threadfence();
  if (shared.last && threadIdx.x == 40) AddUp(memory);
}

// Writes the number of the counting thread too late for others to see.
template <bool kBeforeCount>
void ReleaseTooLate(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    if (kBeforeCount) memory->numbers[blockIdx.x] = 1;
    shared.last = atomicAdd(&memory->counter, 1u) == gridDim.x - 1;
    __threadfence();
    if (!kBeforeCount) memory->numbers[blockIdx.x] = 1;
  }
  __syncthreads();
  if (shared.last && threadIdx.x == 0) AddUp(memory);
}

template <bool kFences>
void LastBlockReadsCount(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  atomicAdd(&memory->sum, 1u);
  if (kFences && !sol::cuda::LastBlock(&memory->counter, gridDim.x, shared.last)) return;
  if (!kFences) {
    if (threadIdx.x == 0) shared.last = atomicAdd(&memory->counter, 1u) == gridDim.x - 1;
    __syncthreads();
    if (!shared.last) return;
  }
  if (threadIdx.x == 40) memory->numbers[0] = memory->sum;
}

void OneBlockReadsCount(Memory* memory) {
  if (threadIdx.x == 0) atomicAdd(&memory->sum, 1u);
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == 0) memory->numbers[0] = memory->sum;
}

void SharedCountReleasesNothing(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  if (blockIdx.x == 0) memory->numbers[threadIdx.x] = 1;
  __syncthreads();
  if (threadIdx.x == 0) {
    __threadfence();
    atomicAdd(&shared.numbers[0], 1u);
    __threadfence();
  }
  __syncthreads();
  if (blockIdx.x == 2 && threadIdx.x == 40) memory->sum = memory->numbers[5];
}

template <bool kWrites>
void ReadOnlyLoad(Memory* memory) {
  const uint32_t number = __ldg(&memory->numbers[threadIdx.x]);
  __syncthreads();
  if (blockIdx.x == 0) memory->numbers[threadIdx.x + (kWrites ? 0 : kThreads)] = number;
}

void WriteOwn(Memory* memory) { memory->numbers[blockIdx.x * kThreads + threadIdx.x] = memory->numbers[0] + 1; }

template <bool kAtomic>
void ReadOnlyLoadOfOwn(Memory* memory) {
  uint32_t* own = &memory->numbers[blockIdx.x * kThreads + threadIdx.x];
  if (kAtomic) atomicAdd(own, 1u);
  if (!kAtomic) *own = 1;
  __syncthreads();
  const uint32_t number = __ldg(own);
  if (number > 5) memory->sum = 1;
}

// One block, or one warp, reads plainly what all count.
template <bool kOfBlock>
void ReadsAndCounts(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  uint32_t* count = kOfBlock ? &memory->sum : &shared.numbers[0];
  if (!kOfBlock && threadIdx.x == 0) *count = 0;
  __syncthreads();
  if (threadIdx.x == 0 && (!kOfBlock || blockIdx.x == 0)) memory->numbers[blockIdx.x] = *count;
  if (threadIdx.x % 40 == 0) atomicAdd(count, 1u);
}

// Three threads read, and one that comes after two of them writes.
void TwoWarpsRead(Memory* memory) {
  SOL_SHARED(Numbers, shared);
  if (threadIdx.x == 0) shared.numbers[0] = 1;
  __syncthreads();
  if (threadIdx.x == 0 || threadIdx.x == 1 || threadIdx.x == 33) memory->numbers[blockIdx.x * kThreads + threadIdx.x] = shared.numbers[0];
  __syncwarp();
  if (threadIdx.x == 2) shared.numbers[0] = 2;
}

using Kernel = void (*)(Memory*);

const std::map<std::string, Kernel> kKernels = {
    {"barrier", ReadNeighbour<true>},
    {"no barrier", ReadNeighbour<false>},
    {"barrier before a write", WriteWhatOthersRead<true>},
    {"no barrier before a write", WriteWhatOthersRead<false>},
    {"syncwarp", ReadLane<true>},
    {"no syncwarp", ReadLane<false>},
    {"syncwarp for two warps", SyncWarpIsOfOneWarp},
    {"neighbouring bytes", WriteNeighbouringBytes},
    {"one word", WriteOneWord},
    {"atomic count", Count<true>},
    {"plain count", Count<false>},
    {"read of a count", ReadWhatIsCounted},
    {"last block", LastBlockAddsUp},
    {"last block, written out", LastBlockWithout<true, true, true>},
    {"no fence before", LastBlockWithout<false, true, true>},
    {"no fence after", LastBlockWithout<true, false, true>},
    {"no barrier before the count", LastBlockWithout<true, true, false>},
    {"own fences", LastBlockOfOwnFences},
    {"blocks read what one writes", WriteOwn},
    {"write before the count", ReleaseTooLate<true>},
    {"write after the count", ReleaseTooLate<false>},
    {"last block reads a count", LastBlockReadsCount<true>},
    {"last block reads a count without fences", LastBlockReadsCount<false>},
    {"one block reads a count", OneBlockReadsCount},
    {"count in shared memory", SharedCountReleasesNothing},
    {"read-only load", ReadOnlyLoad<false>},
    {"read-only load of what is written", ReadOnlyLoad<true>},
    {"read-only load after a write", ReadOnlyLoadOfOwn<false>},
    {"read-only load after a count", ReadOnlyLoadOfOwn<true>},
    {"one block reads and all count", ReadsAndCounts<true>},
    {"one thread reads and others count", ReadsAndCounts<false>},
    {"two warps read", TwoWarpsRead},
};

}  // namespace

int main(int count, char** arguments) {
  const auto kernel = kKernels.find(count == 2 ? arguments[1] : "");
  if (kernel == kKernels.end()) {
    for (const auto& [name, unused] : kKernels) std::printf("%s\n", name.c_str());
    return 2;
  }
  Memory memory = {};
  // Twice: a launch comes after the one before.
  for (int i = 0; i < 2; ++i) {
    memory.counter = 0;
    Launch(kernel->second, kBlocks, kThreads, 0, nullptr, &memory);
  }
  return 0;
}
