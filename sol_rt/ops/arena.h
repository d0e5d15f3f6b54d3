// Arrays in one block of memory.
#pragma once

#include <cstddef>
#include <new>
#include <type_traits>

#include "op.h"

namespace sol {

// Hands out slices of a block, each aligned for vectors and with room behind it for a whole one.
class Arena {
 public:
  explicit Arena(char* base) : base_(base) {}

  template <class T>
  T* Take(size_t count) {
    T* slice = reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return slice;
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
