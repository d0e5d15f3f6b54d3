// Races of emulated kernels: two accesses to a byte, one of them a write, not both atomic, that nothing puts in an order. What does, as CUDA
// has it (its programming guide's memory fences; PTX ISA, memory consistency model): a barrier within a block, __syncwarp within a warp, the
// end of a launch, and between blocks an atomic operation on one place that the one reaches after a fence and the other before a fence.
// Warp shuffles, votes and matrix instructions order no memory.
//
// It finds what happened to be unordered whatever order the threads ran in. Of a byte it remembers the last write and four reads.
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

 private:
  // Phases are counted by barriers, steps of a warp by __syncwarp.
  struct Event {
    uint32_t block = 0, phase = 0, step = 0;
    uint16_t thread = 0;
    bool atomic = false;
    const void* code = nullptr;  // none: no such event
  };
  static constexpr int kReads = 4;
  struct Byte {
    Event write;
    Event reads[kReads];
    int next = 0;
  };
  static constexpr size_t kLine = 64;
  struct Line {
    Byte bytes[kLine];
  };
  // Of a block: what came before the phase, and what `thread` did until it ended.
  struct Seen {
    uint32_t phase = 0;
    uint32_t thread = 0;
  };
  using SeenBlocks = std::unordered_map<uint32_t, Seen>;
  struct Thread {
    uint32_t step = 0;
    bool fenced = false;
    SeenBlocks released;  // with its last fence
    SeenBlocks observed;  // by its atomic operations, in order for it after a fence
    SeenBlocks acquired;
  };

  static void Add(SeenBlocks& to, const SeenBlocks& from);
  bool Sees(const SeenBlocks& seen, const Event& before) const;
  bool Ordered(const Event& before, const Event& now, bool shared) const;
  Line& LineAt(uintptr_t address);
  static bool KnownRead(const Byte& byte, const Event& now);
  void Touch(const Event& now, const void* at, size_t bytes, bool write);

  uint32_t block_ = 0, phase_ = 0;
  std::vector<Thread> threads_;
  SeenBlocks seen_;  // by all threads of the block
  std::unordered_map<const void*, SeenBlocks> places_;  // of atomic operations
  std::unordered_map<uintptr_t, std::unique_ptr<Line>> lines_;  // of this launch: what was before is in order
  static constexpr size_t kRecent = 1024;
  struct Recent {
    uintptr_t address = 0;
    Line* line = nullptr;
  };
  Recent recent_[kRecent];
  uintptr_t shared_ = 0;
  size_t shared_bytes_ = 0;
};

}  // namespace emulation
