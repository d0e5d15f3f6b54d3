// CUDA on the host, for tests: runs a grid block by block, the threads of a block as fibers that switch where they synchronise.
// Kernels are compiled unchanged by the host's compiler. What is emulated: barriers, warp collectives over whole warps, shared memory,
// atomics, dp4a, byte permutation, and the fragments of the matrix instructions. Shared memory starts as NaN in every block. Threads and
// blocks run in ascending order, or as SOL_CUDA_EMULATION_ORDER says: `descending`, or `shuffled`, another order at every step.
// A block that waits for a thread that has left, and a load that is not aligned, end the process with one line.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct int2 {
  int x, y;
};
struct uint2 {
  uint32_t x, y;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
inline uint4 make_uint4(uint32_t x, uint32_t y, uint32_t z, uint32_t w) { return {x, y, z, w}; }
inline uint2 make_uint2(uint32_t x, uint32_t y) { return {x, y}; }
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr int kLanes = 32;
constexpr size_t kStackBytes = 256 * 1024;

[[noreturn]] inline void Die(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

enum class State { kReady, kAtBarrier, kInWarp, kDone };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  bool started = false;
  State state = State::kDone;
  int predicate = 0;
  std::unique_ptr<char[]> stack;
};

// What the lanes of a warp hand each other: two generations, as a slow lane may still read the last one.
struct Warp {
  alignas(16) unsigned char slots[2][kLanes][64];
  int generation = 0;
  int arrived = 0;
};

// One block at a time, of one launch at a time.
class Machine {
 public:
  static Machine& Get() {
    static Machine machine;
    return machine;
  }

  void Launch(dim3 grid, unsigned threads, size_t shared_bytes, const std::function<void()>& kernel) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const char* order = std::getenv("SOL_CUDA_EMULATION_ORDER");
    order_ = order == nullptr ? 'a' : order[0];
    if (threads == 0 || threads > 1024 || threads % kLanes != 0) Die("a block's size is no multiple of 32 up to 1024");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) Die("an empty grid, or one beyond 65535 in y or z");
    if (shared_bytes > 48 * 1024) Die("more dynamic shared memory than 48 KiB");
    while (fibers_.size() < threads) fibers_.emplace_back(std::make_unique<Fiber>());
    kernel_ = &kernel;
    threads_ = threads;
    gridDim = grid;
    blockDim = dim3(threads);
    dynamic_.assign(shared_bytes, 0xFF);
    std::vector<uint64_t> blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
    Arrange(blocks);
    for (const uint64_t block : blocks) {
      blockIdx = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                      static_cast<unsigned>(block / grid.x / grid.y));
      RunBlock();
    }
  }

  uint64_t BlockSerial() const { return serial_; }
  void* Dynamic() { return dynamic_.data(); }

  // Ends the thread's turn until the state is over.
  void Wait(State state) {
    Fiber& fiber = *fibers_[current_];
    fiber.state = state;
    if (_setjmp(fiber.at) == 0) _longjmp(scheduler_, 1);
  }

  int Barrier(int predicate) {
    fibers_[current_]->predicate = predicate;
    Wait(State::kAtBarrier);
    return counted_;
  }

  // Gives `mine` to the warp; returns what all lanes gave.
  template <class T>
  const unsigned char (*Exchange(const T& mine))[64] {
    static_assert(sizeof(T) <= 64);
    Warp& warp = warps_[current_ / kLanes];
    auto& slots = warp.slots[warp.generation % 2];
    std::memcpy(slots[current_ % kLanes], &mine, sizeof(T));
    if (++warp.arrived == kLanes) {
      warp.arrived = 0;
      ++warp.generation;
      for (unsigned i = current_ / kLanes * kLanes; i < (current_ / kLanes + 1) * kLanes; ++i) fibers_[i]->state = State::kReady;
    } else {
      Wait(State::kInWarp);
    }
    return slots;
  }

  unsigned Lane() const { return current_ % kLanes; }

 private:
  template <class T>
  void Arrange(std::vector<T>& items) {
    if (order_ == 'd') std::reverse(items.begin(), items.end());
    if (order_ == 's') {
      for (size_t i = items.size(); i > 1; --i) {
        random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
        std::swap(items[i - 1], items[(random_ >> 33) % i]);
      }
    }
  }

  void RunBlock() {
    ++serial_;
    std::fill(dynamic_.begin(), dynamic_.end(), 0xFF);
    warps_.assign(threads_ / kLanes, Warp());
    std::vector<unsigned> turns(threads_);
    for (unsigned i = 0; i < threads_; ++i) {
      fibers_[i]->state = State::kReady;
      turns[i] = i;
    }
    for (bool any = true; any;) {
      Arrange(turns);
      bool moved = false;
      unsigned done = 0, waiting = 0;
      for (const unsigned i : turns) {
        if (fibers_[i]->state == State::kReady) {
          moved = true;
          Resume(i);
        }
      }
      for (unsigned i = 0; i < threads_; ++i) {
        done += fibers_[i]->state == State::kDone;
        waiting += fibers_[i]->state == State::kAtBarrier;
      }
      any = done < threads_;
      if (waiting > 0 && waiting + done == threads_) {
        if (done > 0) Die("a barrier that some threads have left out");
        counted_ = 0;
        for (unsigned i = 0; i < threads_; ++i) {
          counted_ += fibers_[i]->predicate != 0;
          fibers_[i]->state = State::kReady;
        }
      } else if (any && !moved) {
        Die("threads wait for others that will not come");
      }
    }
  }

  void Resume(unsigned i) {
    current_ = i;
    threadIdx = dim3(i);
    Fiber& fiber = *fibers_[i];
    if (_setjmp(scheduler_) != 0) return;
    if (fiber.started) _longjmp(fiber.at, 1);
    fiber.started = true;
    fiber.stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStackBytes;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, &Machine::Enter, 0);
    setcontext(&fiber.start);
  }

  static void Enter() {
    for (;;) {
      Machine& machine = Get();
      (*machine.kernel_)();
      machine.Wait(State::kDone);
    }
  }

  std::mutex mutex_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Warp> warps_;
  std::vector<unsigned char> dynamic_;
  const std::function<void()>* kernel_ = nullptr;
  unsigned threads_ = 0, current_ = 0;
  int counted_ = 0;
  uint64_t serial_ = 0, random_ = 1;
  char order_ = 'a';
  jmp_buf scheduler_;
};

// A block's shared memory at one place of the program.
template <class T>
class Shared {
 public:
  T& Get() {
    const uint64_t now = Machine::Get().BlockSerial();
    if (now != serial_) std::memset(memory_, 0xFF, sizeof(T));
    serial_ = now;
    return *reinterpret_cast<T*>(memory_);
  }

 private:
  alignas(16) unsigned char memory_[sizeof(T)];
  uint64_t serial_ = 0;
};

template <class T>
T Read(const unsigned char (*slots)[64], unsigned lane) {
  T value;
  std::memcpy(&value, slots[lane], sizeof(T));
  return value;
}

// What the lanes of a warp bring to a matrix instruction of eight words of depth, as PTX lays it out: 16 rows of four registers on the left,
// eight columns of two on the right. A lane's results are those of two columns in its row and in the eighth after it.
class Fragments {
 public:
  Fragments(const uint32_t (&a)[4], const uint32_t (&b)[2]) : lane_(Machine::Get().Lane()) {
    const uint32_t mine[6] = {a[0], a[1], a[2], a[3], b[0], b[1]};
    slots_ = Machine::Get().Exchange(mine);
  }
  // Word `word` of the row, or column, of a lane's result i.
  uint32_t Left(unsigned word, unsigned i) const { return Register(lane_ / 4 * 4 + word % 4, i / 2 + word / 4 * 2); }
  uint32_t Right(unsigned word, unsigned i) const { return Register((lane_ % 4 * 2 + i % 2) * 4 + word % 4, 4 + word / 4); }

 private:
  uint32_t Register(unsigned lane, unsigned index) const {
    uint32_t value;
    std::memcpy(&value, slots_[lane] + 4 * index, sizeof(value));
    return value;
  }

  unsigned lane_;
  const unsigned char (*slots_)[64];
};

inline float FloatOfHalf(uint16_t half) {
  static const std::vector<float> all = [] {
    std::vector<float> numbers(65536);
    for (int bits = 0; bits < 65536; ++bits) {
      const float sign = bits & 0x8000 ? -1.0f : 1.0f;
      const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
      float number = sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
      if (exponent == 0) number = sign * std::ldexp(static_cast<float>(fraction), -24);
      if (exponent == 0x1F) number = fraction != 0 ? std::nanf("") : sign * INFINITY;
      numbers[static_cast<size_t>(bits)] = number;
    }
    return numbers;
  }();
  return all[half];
}

// Rounds to nearest, ties to even; beyond float16 to infinity.
inline uint16_t HalfOfFloat(float value) {
  const uint16_t sign = std::signbit(value) ? 0x8000 : 0;
  const float size = std::fabs(value);
  if (std::isnan(value)) return 0x7FFF;
  if (size >= 65520.0f) return sign | 0x7C00;
  if (size < std::ldexp(1.0f, -14)) return sign | static_cast<uint16_t>(std::nearbyint(std::ldexp(size, 24)));
  int exponent;
  const float mantissa = std::frexp(size, &exponent);  // in [0.5, 1)
  const int code = static_cast<int>(std::nearbyint(std::ldexp(mantissa, 11)));  // 1024 … 2048
  return sign | static_cast<uint16_t>(((exponent + 13) << 10) + code);
}

}  // namespace emulation

inline void __syncthreads() { emulation::Machine::Get().Barrier(0); }
inline int __syncthreads_count(int predicate) { return emulation::Machine::Get().Barrier(predicate); }
inline void __syncwarp() { emulation::Machine::Get().Exchange(0); }
inline void __threadfence() {}

inline void RequireWholeWarp(uint32_t mask) {
  if (mask != 0xffffffffu) emulation::Die("a warp collective of some lanes only");
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int by) {
  RequireWholeWarp(mask);
  auto& machine = emulation::Machine::Get();
  const auto* slots = machine.Exchange(value);
  return emulation::Read<T>(slots, machine.Lane() ^ static_cast<unsigned>(by));
}
template <class T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by) {
  RequireWholeWarp(mask);
  auto& machine = emulation::Machine::Get();
  const auto* slots = machine.Exchange(value);
  return emulation::Read<T>(slots, machine.Lane() < by ? machine.Lane() : machine.Lane() - by);
}
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane) {
  RequireWholeWarp(mask);
  return emulation::Read<T>(emulation::Machine::Get().Exchange(value), static_cast<unsigned>(lane) % 32);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  RequireWholeWarp(mask);
  const auto* slots = emulation::Machine::Get().Exchange(predicate);
  uint32_t votes = 0;
  for (unsigned i = 0; i < 32; ++i) votes |= static_cast<uint32_t>(emulation::Read<int>(slots, i) != 0) << i;
  return votes;
}

template <class T>
T atomicAdd(T* at, T by) {
  const T before = *at;
  *at += by;
  return before;
}
// A device loads words of 2, 4, 8 and 16 bytes from multiples of their size alone; the host would not mind.
template <class T>
T __ldg(const T* at) {
  if (reinterpret_cast<uintptr_t>(at) % sizeof(T) != 0) emulation::Die("a load that is not aligned");
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return __ldg(at);
}
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
inline int __float2int_rn(float x) { return std::isnan(x) ? 0 : static_cast<int>(std::nearbyint(std::clamp(x, -2147483648.0f, 2147483520.0f))); }
inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float __uint_as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}
inline float __fmul_rn(float a, float b) { return a * b; }
inline uint32_t __byte_perm(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t both = static_cast<uint64_t>(b) << 32 | a;
  uint32_t result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<uint32_t>(both >> 8 * (selector >> 4 * i & 7) & 0xFF) << 8 * i;
  return result;
}
