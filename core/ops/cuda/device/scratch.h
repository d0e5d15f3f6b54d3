// Arrays in one block of device memory.
#pragma once

#include <cstddef>

namespace sol::cuda {

// Hands out slices of a block; with base null it only counts.
class Scratch {
 public:
  explicit Scratch(char* base = nullptr) : base_(base) {}

  template <class T>
  T* Take(size_t count) {
    T* slice = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return slice;
  }
  size_t Used() const { return used_; }

 private:
  static constexpr size_t kAlignment = 256;
  char* base_;
  size_t used_ = 0;
};

}  // namespace sol::cuda
