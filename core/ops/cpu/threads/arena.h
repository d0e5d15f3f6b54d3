// Scratch memory: a block that is kept from run to run, and arrays in it.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

namespace sol {

// Marks bytes for the address sanitizer: those that nothing may touch, as after an array, and those that may be used.
#ifdef __SANITIZE_ADDRESS__
inline constexpr size_t kFence = 64;
inline void Forbid(const void* from, size_t bytes) { ASAN_POISON_MEMORY_REGION(from, bytes); }
inline void Allow(const void* from, size_t bytes) { ASAN_UNPOISON_MEMORY_REGION(from, bytes); }
#else
inline constexpr size_t kFence = 0;
inline void Forbid(const void*, size_t) {}
inline void Allow(const void*, size_t) {}
#endif

// Uninitialized memory, 64-byte aligned, that grows and is kept: declare it thread_local.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { Free(); }

  template <class T>
  T* Get(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > capacity_) {
      const size_t rounded = (bytes + bytes / 4 + kSlack + 4095) / 4096 * 4096;
      void* fresh = ::operator new(rounded, kAlignment);
      Free();
      memory_ = fresh;
      capacity_ = rounded - kSlack;
    }
    if (memory_ != nullptr) {
      Allow(memory_, bytes);
      Forbid(static_cast<char*>(memory_) + bytes, capacity_ + kSlack - bytes);
    }
    return static_cast<T*>(memory_);
  }

 private:
  void Free() { ::operator delete(memory_, kAlignment); }

  static constexpr std::align_val_t kAlignment{64};
  static constexpr size_t kSlack = 256;  // whole vectors may be read past the end
  void* memory_ = nullptr;
  size_t capacity_ = 0;
};

// Hands out slices of a block, each aligned for vectors and with room after it for a whole one.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  // Null where there is no block, and sizes alone are asked for.
  template <class T>
  T* Take(size_t count) {
    char* const slice = base_ != nullptr ? base_ + used_ : nullptr;
    const size_t bytes = count * sizeof(T), whole = (bytes + kAlignment - 1) / kAlignment * kAlignment + kFence;
    used_ += whole;
    if (slice != nullptr) Forbid(slice + bytes, whole - bytes);
    return reinterpret_cast<T*>(slice);
  }
  // `count` objects, each as make() gives it; make may take from the same arena.
  template <class Make>
  auto* Each(size_t count, const Make& make) {
    using T = decltype(make());
    static_assert(std::is_trivially_destructible_v<T>);
    T* all = Take<T>(count);
    for (size_t i = 0; i < count; ++i) {
      T one = make();
      if (base_ != nullptr) new (all + i) T(one);
    }
    return all;
  }
  size_t Used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 64;
  char* base_;
  size_t used_ = 0;
};

// Lets `place(arena)` take its arrays from `memory`: once to learn how much they need, once for good.
template <class F>
void Place(Buffer& memory, F&& place) {
  Arena sizes(nullptr);
  place(sizes);
  Arena arena(memory.Get<char>(sizes.Used()));
  place(arena);
}

}  // namespace sol
