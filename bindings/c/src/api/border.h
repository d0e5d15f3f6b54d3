// What every function of sol_rt.h does at the border: exceptions become errors, structs of other versions are read and filled as far as both sides know.
#pragma once

#include <cstddef>
#include <cstring>
#include <string>

#include "base/error.h"
#include "sol_rt.h"

namespace sol_rt {

// The error of the exception that is being handled. Never throws.
sol_error* CurrentError() noexcept;

template <class F>
sol_error* Guard(F&& f) noexcept {
  try {
    f();
    return nullptr;
  } catch (...) {
    return CurrentError();
  }
}

// Throws SOL_ERROR_USAGE for NULL.
inline void RequireHandle(const void* handle, const char* what) {
  if (handle == nullptr) UsageFault(std::string(what) + ": got NULL, expected a handle");
}
inline void RequirePointer(const void* pointer, const char* what) {
  if (pointer == nullptr) UsageFault(std::string(what) + ": got NULL, expected a pointer");
}

// A host's struct as this library knows it: what lies beyond the host's `size` has the values of `defaults`. A struct may be NULL.
template <class T>
T ReadStruct(const T* given, const T& defaults, const char* what) {
  T made = defaults;
  if (given == nullptr) return made;
  uint32_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (size < sizeof(size) || size > 4096) UsageFault(std::string(what) + ": got size " + std::to_string(size) + ", expected sizeof of the struct");
  std::memcpy(static_cast<void*>(&made), given, size < sizeof(T) ? size : sizeof(T));
  made.size = static_cast<uint32_t>(sizeof(T));
  return made;
}

// Throws SOL_ERROR_USAGE for a struct to fill that is NULL or whose `size` was not set.
template <class T>
void RequireStruct(const T* given, const char* what) {
  RequirePointer(given, what);
  if (given->size < sizeof(uint32_t) || given->size > 4096) {
    UsageFault(std::string(what) + ": got size " + std::to_string(given->size) + ", expected sizeof of the struct");
  }
}

// Fills the part of a host's struct that both sides know; its `size` stays.
template <class T>
void FillStruct(T made, T* given) {
  const uint32_t size = given->size;
  made.size = size;
  std::memcpy(static_cast<void*>(given), &made, size < sizeof(T) ? size : sizeof(T));
}

// Fills an array of the host if it has room for all, and sets the full count.
template <class T>
void FillArray(const T* made, size_t made_count, T* array, size_t capacity, size_t* count) {
  RequirePointer(count, "count");
  *count = made_count;
  if (made_count > capacity || made_count == 0) return;
  RequirePointer(array, "array");
  std::memcpy(array, made, made_count * sizeof(T));
}

}  // namespace sol_rt
