// A GPU on the host, for tests: runs a grid block by block, the threads of a block as fibers that switch where they synchronise. Shared
// memory starts as NaN in every block. Threads and blocks run in ascending order, or as SOL_CUDA_EMULATION_ORDER says: `descending`, or
// `shuffled`, another order at every step. What a device would not run ends the process with one line: a block that waits for a thread that
// has left, more memory or threads than there are, a load that is not aligned (cuda_emulation.h), and, where kernels are compiled with
// -fsanitize=thread, a race (cuda_races.h).
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#include "cuda_races.h"

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

extern dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kLanes = 32;
extern const float* const kHalves;  // float16 numbers by their bits

[[noreturn]] void Die(const char* what);

struct alignas(16) Slot {
  unsigned char bytes[64];
};

// Place of a block's shared memory of one declaration.
struct SharedPlace {
  uint64_t block = 0;
  void* memory = nullptr;
};

// One block at a time, of one launch at a time.
class Machine {
 public:
  static Machine& Get();

  void Launch(dim3 grid, unsigned threads, size_t dynamic_shared_bytes, const std::function<void()>& kernel);

  void* SharedMemory(SharedPlace& place, size_t bytes);
  void* Dynamic() { return shared_; }
  // All of the following are called by a thread of the block.
  unsigned Lane() const { return current_ % kLanes; }
  int Barrier(int predicate);  // returns of how many threads the predicate is not 0
  void SyncWarp();
  void Fence() { races_.Fence(current_); }
  void Atomic(void* at, size_t bytes);
  void ReadOnly(const void* at, size_t bytes) { races_.ReadOnly(current_, at, bytes, __builtin_return_address(0)); }
  const Slot* Exchange(const void* mine, size_t bytes);

  // Books a load or store, as a kernel's compiler reports it.
  void Access(const void* at, size_t bytes, bool write, const void* code);

 private:
  enum class State { kReady, kAtBarrier, kInWarp, kDone };

  struct Fiber {
    ucontext_t start;
    jmp_buf at;
    bool started = false;
    State state = State::kDone;
    int predicate = 0;
    char* stack = nullptr;
  };

  // Values that the lanes of a warp exchange: two generations, as a slow lane may still read the last one.
  struct Warp {
    int generation = 0;
    unsigned arrived = 0;
  };

  Machine();
  template <class T>
  void Arrange(std::vector<T>& items);
  void RunBlock();
  void Resume(unsigned i);
  void Wait(State state);  // ends the thread's turn until the state is over
  static void Enter();

  std::mutex mutex_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  char* own_;     // memory of the machine, not the kernels': what warps exchange, and stacks
  char* shared_;  // of the running block
  size_t dynamic_bytes_ = 0, shared_bytes_ = 0;
  const std::function<void()>* kernel_ = nullptr;
  unsigned threads_ = 0, current_ = 0;
  int counted_ = 0;
  uint64_t serial_ = 0, random_ = 1;
  char order_ = 'a';
  jmp_buf scheduler_;
  Races races_;
};

}  // namespace emulation
