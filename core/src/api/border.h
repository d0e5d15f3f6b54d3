// Border of every function of sol_rt.h: exceptions become errors, structs of other versions are read and filled as far as both sides know.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Throws SOL_ERROR_USAGE for a struct of the host that is NULL, or whose `size` was not set.
void RequireSized(const void* given, const char* what);
// Copies the part of a struct that both sides know; the `size` of `to` stays. `own` is this library's sizeof, `size` the host's.
void CopyStruct(void* to, const void* from, size_t own, uint32_t size);

// Sets a host's struct to its defaults, as far as both sides know it, and the rest to zero. `size` is the host's sizeof.
template <class T>
void InitStruct(const T& defaults, T* given, uint32_t size) {
  if (given == nullptr || size < sizeof(size) || size > 4096) return;
  std::memset(static_cast<void*>(given), 0, size);
  given->size = size;
  CopyStruct(given, &defaults, sizeof(T), size);
}

// A host's struct as this library knows it: what lies beyond the host's `size` has the values of `defaults`. A struct may be NULL.
template <class T>
T ReadStruct(const T* given, T made, const char* what) {
  if (given == nullptr) return made;
  RequireSized(given, what);
  CopyStruct(&made, given, sizeof(T), given->size);
  return made;
}

// Fills the part of a host's struct that both sides know.
template <class T>
void FillStruct(const T& made, T* given) {
  CopyStruct(given, &made, sizeof(T), given->size);
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
