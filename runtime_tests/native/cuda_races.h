// Races of emulated kernels: two accesses to a byte, one of them a write, not both atomic, that nothing puts in an order. What does, as CUDA
// has it (its programming guide's memory fences; PTX ISA, memory consistency model): a barrier within a block, __syncwarp within a warp, the
// end of a launch, and between blocks an atomic operation on one place that the one reaches after a fence and the other before a fence.
// Warp shuffles, votes and matrix instructions order no memory. A byte that is read by __ldg may not be written by the same launch at all.
//
// The checker does not take the order that the threads happened to run in for one, and finds what is unordered among the events that it remembers: of a
// byte the last write, four reads and four atomic operations, two of a block. A fence counts as acquire and release alone, though
// __threadfence orders more; of what a thread releases to other blocks only what came before its block's last barrier counts. Copies that the
// compiler leaves to memcpy are not seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

namespace emulation {

class Races {
 public:
  void BeginLaunch();
  void BeginBlock(unsigned threads, const void* shared, size_t shared_bytes);
  void Barrier();
  void SyncWarp(unsigned thread);
  void Fence(unsigned thread);
  void Atomic(unsigned thread, void* at, size_t bytes, const void* code);
  void Access(unsigned thread, const void* at, size_t bytes, bool write, const void* code);
  void ReadOnly(unsigned thread, const void* at, size_t bytes, const void* code);

 private:
  // Phases are counted by barriers, steps of a warp by __syncwarp.
  struct Event {
    uint32_t block = 0, phase = 0, step = 0;
    uint16_t thread = 0;
    bool atomic = false;
    const void* code = nullptr;  // none: no such event
  };
  // Of events to one byte those that no later one stands for, the oldest dropped.
  struct Recent {
    static constexpr int kEvents = 4;
    Event events[kEvents];
    int next = 0;
  };
  struct Byte {
    Event write;
    Recent reads, atomics;
    bool read_only = false;
  };
  static constexpr size_t kLine = 64;
  struct Line {
    Byte bytes[kLine];
  };
  using SeenBlocks = std::unordered_map<uint32_t, uint32_t>;  // of a block what came before a phase
  struct Thread {
    uint32_t step = 0;
    SeenBlocks released;  // with its last fence; nothing before the first one
    SeenBlocks observed;  // by its atomic operations, in order for it after a fence
    SeenBlocks acquired;
  };

  static void Add(SeenBlocks& to, const SeenBlocks& from);
  bool Sees(const SeenBlocks& seen, const Event& before) const;
  bool Ordered(const Event& before, const Event& now, bool shared) const;
  Line& LineAt(uintptr_t address);
  static bool Knows(const Recent& recent, const Event& now);
  void Remember(Recent& recent, const Event& now, bool shared) const;
  void Touch(const Event& now, const void* at, size_t bytes, bool write);

  uint32_t block_ = 0, phase_ = 0;
  std::vector<Thread> threads_;
  SeenBlocks seen_;  // by all threads of the block
  std::unordered_map<const void*, SeenBlocks> places_;  // of atomic operations
  std::unordered_map<uintptr_t, std::unique_ptr<Line>> lines_;  // of this launch: what was before is in order
  static constexpr size_t kPlaces = 1024;
  struct Place {
    uintptr_t address = 0;
    Line* line = nullptr;
  };
  Place found_[kPlaces];  // lines, so that few are looked up
  uintptr_t shared_ = 0;
  size_t shared_bytes_ = 0;
};

}  // namespace emulation
