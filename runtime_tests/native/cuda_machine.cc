#include "cuda_machine.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {
namespace {

constexpr unsigned kMostThreads = 1024;
constexpr size_t kMostShared = 48 * 1024;
constexpr size_t kStackBytes = 256 * 1024;
constexpr size_t kSlotBytes = 2 * kMostThreads * sizeof(Slot);
constexpr size_t kOwnBytes = kSlotBytes + kMostThreads * kStackBytes;

// True while the process' thread is within a launch: others may build kernels' arguments meanwhile.
thread_local bool in_kernel = false;

char* Map(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) Die("no memory for the threads of a block");
  return static_cast<char*>(memory);
}

const float* MakeHalves() {
  float* numbers = new float[65536];
  for (int bits = 0; bits < 65536; ++bits) {
    const float sign = bits & 0x8000 ? -1.0f : 1.0f;
    const int exponent = bits >> 10 & 0x1F, fraction = bits & 0x3FF;
    float number = sign * std::ldexp(static_cast<float>(fraction + 1024), exponent - 25);
    if (exponent == 0) number = sign * std::ldexp(static_cast<float>(fraction), -24);
    if (exponent == 0x1F) number = fraction != 0 ? std::nanf("") : sign * INFINITY;
    numbers[bits] = number;
  }
  return numbers;
}

}  // namespace

const float* const kHalves = MakeHalves();

void Die(const char* what) {
  std::fprintf(stderr, "CUDA emulation: %s (block %u %u %u, thread %u)\n", what, blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x);
  std::abort();
}

Machine::Machine() : own_(Map(kOwnBytes)), shared_(Map(kMostShared)) {}

Machine& Machine::Get() {
  static Machine machine;
  return machine;
}

void Machine::Launch(dim3 grid, unsigned threads, size_t dynamic_shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const char* order = std::getenv("SOL_CUDA_EMULATION_ORDER");
  order_ = order == nullptr ? 'a' : order[0];
  if (threads == 0 || threads > kMostThreads || threads % kLanes != 0) Die("a block's size is no multiple of 32 up to 1024");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) Die("an empty grid, or one beyond 65535 in y or z");
  if (dynamic_shared_bytes > kMostShared) Die("more shared memory than 48 KiB");
  while (fibers_.size() < threads) {
    fibers_.emplace_back(std::make_unique<Fiber>());
    fibers_.back()->stack = own_ + kSlotBytes + (fibers_.size() - 1) * kStackBytes;
  }
  kernel_ = &kernel;
  threads_ = threads;
  gridDim = grid;
  blockDim = dim3(threads);
  dynamic_bytes_ = (dynamic_shared_bytes + 15) / 16 * 16;
  std::vector<uint64_t> blocks(static_cast<uint64_t>(grid.x) * grid.y * grid.z);
  for (size_t i = 0; i < blocks.size(); ++i) blocks[i] = i;
  Arrange(blocks);
  races_.BeginLaunch();
  in_kernel = true;
  for (const uint64_t block : blocks) {
    blockIdx = dim3(static_cast<unsigned>(block % grid.x), static_cast<unsigned>(block / grid.x % grid.y),
                    static_cast<unsigned>(block / grid.x / grid.y));
    RunBlock();
  }
  in_kernel = false;
}

void* Machine::SharedMemory(SharedPlace& place, size_t bytes) {
  if (place.block != serial_) {
    place = {serial_, shared_ + shared_bytes_};
    shared_bytes_ += (bytes + 15) / 16 * 16;
    if (shared_bytes_ > kMostShared) Die("more shared memory than 48 KiB");
  }
  return place.memory;
}

void Machine::Wait(State state) {
  Fiber& fiber = *fibers_[current_];
  fiber.state = state;
  if (_setjmp(fiber.at) == 0) _longjmp(scheduler_, 1);
}

int Machine::Barrier(int predicate) {
  fibers_[current_]->predicate = predicate;
  Wait(State::kAtBarrier);
  return counted_;
}

void Machine::SyncWarp() {
  Exchange(nullptr, 0);
  races_.SyncWarp(current_);
}

void Machine::Atomic(void* at, size_t bytes) { races_.Atomic(current_, at, bytes, __builtin_return_address(0)); }

const Slot* Machine::Exchange(const void* mine, size_t bytes) {
  const unsigned index = current_ / kLanes;
  Warp& warp = warps_[index];
  Slot* slots = reinterpret_cast<Slot*>(own_) + (warp.generation % 2 * kMostThreads + index * kLanes);
  if (bytes > 0) std::memcpy(slots[Lane()].bytes, mine, bytes);
  if (++warp.arrived == kLanes) {
    warp.arrived = 0;
    ++warp.generation;
    for (unsigned i = index * kLanes; i < (index + 1) * kLanes; ++i) fibers_[i]->state = State::kReady;
  } else {
    Wait(State::kInWarp);
  }
  return slots;
}

void Machine::Access(const void* at, size_t bytes, bool write, const void* code) {
  if (!in_kernel) return;
  const char* byte = static_cast<const char*>(at);
  if (byte >= own_ && byte < own_ + kOwnBytes) return;
  races_.Access(current_, at, bytes, write, code);
}

template <class T>
void Machine::Arrange(std::vector<T>& items) {
  if (order_ == 'd') std::reverse(items.begin(), items.end());
  if (order_ == 's') {
    for (size_t i = items.size(); i > 1; --i) {
      random_ = random_ * 6364136223846793005ull + 1442695040888963407ull;
      std::swap(items[i - 1], items[(random_ >> 33) % i]);
    }
  }
}

void Machine::RunBlock() {
  ++serial_;
  shared_bytes_ = dynamic_bytes_;
  std::memset(shared_, 0xFF, kMostShared);
  races_.BeginBlock(threads_, shared_, kMostShared);
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
      races_.Barrier();
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

void Machine::Resume(unsigned i) {
  current_ = i;
  threadIdx = dim3(i);
  Fiber& fiber = *fibers_[i];
  if (_setjmp(scheduler_) != 0) return;
  if (fiber.started) _longjmp(fiber.at, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = kStackBytes;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, &Machine::Enter, 0);
  setcontext(&fiber.start);
}

void Machine::Enter() {
  for (;;) {
    Machine& machine = Get();
    (*machine.kernel_)();
    machine.Wait(State::kDone);
  }
}

}  // namespace emulation
