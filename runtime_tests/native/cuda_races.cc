#include "cuda_races.h"

#include <dlfcn.h>

#include <cstdio>
#include <cstdlib>
#include <iterator>
#include <string>

#include "cuda_machine.h"

namespace emulation {
namespace {

// The kernel's line, where the tool is there to report it.
std::string LineOf(const void* code) {
  Dl_info info;
  if (dladdr(code, &info) == 0) return "?";
  const auto offset = reinterpret_cast<uintptr_t>(code) - reinterpret_cast<uintptr_t>(info.dli_fbase) - 1;
  char command[1024];
  std::snprintf(command, sizeof(command), "addr2line -s -i -e '%s' %#zx 2>/dev/null | tr '\\n' ' '", info.dli_fname, static_cast<size_t>(offset));
  char line[1024] = "";
  if (FILE* pipe = popen(command, "r")) {
    if (std::fgets(line, sizeof(line), pipe) == nullptr) line[0] = 0;
    pclose(pipe);
  }
  return line[0] != 0 ? line : "?";
}

const char* NameOf(bool write, bool atomic) { return atomic ? "an atomic operation" : write ? "a write" : "a read"; }

}  // namespace

void Races::BeginLaunch() {
  block_ = 0;
  places_.clear();
  lines_.clear();
  for (Place& place : found_) place = Place();
}

void Races::BeginBlock(unsigned threads, const void* shared, size_t shared_bytes) {
  ++block_;
  phase_ = 0;
  threads_.assign(threads, Thread());
  seen_.clear();
  shared_ = reinterpret_cast<uintptr_t>(shared);
  shared_bytes_ = shared_bytes;
  for (auto place = places_.begin(); place != places_.end();) {
    const bool of_block = reinterpret_cast<uintptr_t>(place->first) - shared_ < shared_bytes_;
    place = of_block ? places_.erase(place) : std::next(place);
  }
}

void Races::Barrier() {
  ++phase_;
  for (Thread& thread : threads_) {
    if (thread.acquired.empty()) continue;
    Add(seen_, thread.acquired);
    thread.acquired.clear();
  }
}

void Races::SyncWarp(unsigned thread) { ++threads_[thread].step; }

void Races::Fence(unsigned thread) {
  Thread& own = threads_[thread];
  Add(own.acquired, own.observed);
  own.observed.clear();
  own.released = seen_;
  Add(own.released, own.acquired);
  own.released[block_] = phase_;
}

void Races::Atomic(unsigned thread, void* at, size_t bytes, const void* code) {
  Thread& own = threads_[thread];
  Touch({block_, phase_, own.step, static_cast<uint16_t>(thread), true, code}, at, bytes, true);
  SeenBlocks& place = places_[at];
  Add(own.observed, place);
  Add(place, own.released);
}

void Races::Access(unsigned thread, const void* at, size_t bytes, bool write, const void* code) {
  Touch({block_, phase_, threads_[thread].step, static_cast<uint16_t>(thread), false, code}, at, bytes, write);
}

void Races::ReadOnly(unsigned thread, const void* at, size_t bytes, const void* code) {
  const auto first = reinterpret_cast<uintptr_t>(at);
  for (uintptr_t address = first; address < first + bytes; ++address) {
    Byte& byte = LineAt(address).bytes[address % kLine];
    const void* written = byte.write.code;
    for (const Event& atomic : byte.atomics.events) written = atomic.code != nullptr ? atomic.code : written;
    if (written != nullptr) {
      std::fprintf(stderr, "CUDA emulation: __ldg by thread %u of block %u at %s, of what this launch writes at %s\n", thread, block_,
                   LineOf(code).c_str(), LineOf(written).c_str());
      std::abort();
    }
    byte.read_only = true;
  }
}

void Races::Add(SeenBlocks& to, const SeenBlocks& from) {
  for (const auto& [block, phase] : from) {
    uint32_t& known = to[block];
    if (phase > known) known = phase;
  }
}

bool Races::Sees(const SeenBlocks& seen, const Event& before) const {
  const auto found = seen.find(before.block);
  return found != seen.end() && before.phase < found->second;
}

bool Races::Ordered(const Event& before, const Event& now, bool shared) const {
  if (before.code == nullptr) return true;
  if (before.block != now.block) return shared || Sees(seen_, before) || Sees(threads_[now.thread].acquired, before);
  if (before.thread == now.thread || before.phase < now.phase) return true;
  return before.thread / kLanes == now.thread / kLanes && before.step < now.step;
}

Races::Line& Races::LineAt(uintptr_t address) {
  const uintptr_t index = address / kLine;
  Place& place = found_[index % kPlaces];
  if (place.line == nullptr || place.address != index) {
    auto& line = lines_[index];
    if (line == nullptr) line = std::make_unique<Line>();
    place = {index, line.get()};
  }
  return *place.line;
}

bool Races::Knows(const Recent& recent, const Event& now) {
  for (const Event& event : recent.events) {
    if (event.code != nullptr && event.block == now.block && event.thread == now.thread && event.phase == now.phase && event.step == now.step) return true;
  }
  return false;
}

// An event that this one comes after says no more than this one. Of a block two are kept, of two warps where there are, so that other blocks'
// have room.
void Races::Remember(Recent& recent, const Event& now, bool shared) const {
  int of_block = 0;
  Event* last = nullptr;
  Event* free = nullptr;
  for (Event& event : recent.events) {
    if (Ordered(event, now, shared)) {
      free = &event;
    } else if (event.block == now.block) {
      ++of_block;
      if (last == nullptr || event.thread / kLanes == now.thread / kLanes) last = &event;
    }
  }
  if (of_block >= 2) {
    *last = now;
  } else if (free != nullptr) {
    *free = now;
  } else {
    recent.events[recent.next] = now;
    recent.next = (recent.next + 1) % Recent::kEvents;
  }
}

void Races::Touch(const Event& now, const void* at, size_t bytes, bool write) {
  const auto first = reinterpret_cast<uintptr_t>(at);
  const bool shared = first - shared_ < shared_bytes_;
  for (uintptr_t address = first; address < first + bytes; ++address) {
    Byte& byte = LineAt(address).bytes[address % kLine];
    const auto check = [&](const Event& before, bool wrote) {
      if (Ordered(before, now, shared)) return;
      std::fprintf(stderr, "CUDA emulation: a race in %s memory: %s by thread %u of block %u at %s, and %s by thread %u of block %u at %s\n",
                   shared ? "shared" : "device", NameOf(wrote, before.atomic), before.thread, before.block, LineOf(before.code).c_str(),
                   NameOf(write, now.atomic), now.thread, now.block, LineOf(now.code).c_str());
      std::abort();
    };
    if (!write && Knows(byte.reads, now)) continue;
    check(byte.write, true);
    if (!now.atomic) {
      for (const Event& atomic : byte.atomics.events) check(atomic, true);
    }
    if (!write) {
      Remember(byte.reads, now, shared);
      continue;
    }
    if (byte.read_only) {
      std::fprintf(stderr, "CUDA emulation: a write by thread %u of block %u at %s, of what this launch reads by __ldg\n", now.thread, now.block,
                   LineOf(now.code).c_str());
      std::abort();
    }
    for (const Event& read : byte.reads.events) check(read, false);
    if (now.atomic) {
      Remember(byte.atomics, now, shared);
    } else {
      byte.reads = byte.atomics = Recent();
      byte.write = now;
    }
  }
}

}  // namespace emulation

// Functions that GCC and Clang call with -fsanitize=thread, in the place of their own library's.
extern "C" {
#define SOL_ACCESS(bytes)                                                                                                   \
  void __tsan_read##bytes(void* at) { emulation::Machine::Get().Access(at, bytes, false, __builtin_return_address(0)); }    \
  void __tsan_write##bytes(void* at) { emulation::Machine::Get().Access(at, bytes, true, __builtin_return_address(0)); }    \
  void __tsan_unaligned_read##bytes(void* at) { __tsan_read##bytes(at); }                                                   \
  void __tsan_unaligned_write##bytes(void* at) { __tsan_write##bytes(at); }
SOL_ACCESS(1)
SOL_ACCESS(2)
SOL_ACCESS(4)
SOL_ACCESS(8)
SOL_ACCESS(16)
#undef SOL_ACCESS
void __tsan_read_range(void* at, size_t bytes) { emulation::Machine::Get().Access(at, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* at, size_t bytes) { emulation::Machine::Get().Access(at, bytes, true, __builtin_return_address(0)); }
void __tsan_vptr_update(void**, void*) {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
unsigned __tsan_atomic32_fetch_add(unsigned* at, unsigned by, int) { return __atomic_fetch_add(at, by, __ATOMIC_RELAXED); }
}
