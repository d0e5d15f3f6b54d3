// Asks for weights before they are read: where a phase begins, nothing has been asked for, and memory would idle.
#pragma once

#include <algorithm>

#include "cpu/matmul/matmul_kernels.h"

namespace sol {

// Into the core's second-level cache: what is computed meanwhile keeps the first.
inline void FetchBytes(const void* from, size_t bytes) {
  for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(from) + i, 0, 2);
}

// Scales, zero points and residual planes of some outputs of a block; returns their bytes.
inline size_t FetchRest(const Nested& w, size_t block, Range outputs) {
  const size_t at = block * w.N + outputs.begin, count = outputs.end - outputs.begin;
  FetchBytes(w.scale + at, count * 2);
  FetchBytes(w.zero + at, count);
  if (w.plane1 != nullptr) FetchBytes(w.plane1 + at * 8, count * 8);
  if (w.plane2 != nullptr) FetchBytes(w.plane2 + at * 8, count * 8);
  return count * (3 + (w.plane1 != nullptr ? 8 : 0) + (w.plane2 != nullptr ? 8 : 0));
}

// The first blocks, about `bytes` of them, of what a product reads of some outputs.
inline void FetchBlockMajor(const Nested& w, Range outputs, size_t bytes) {
  const size_t run = (outputs.end - outputs.begin) * 16;
  for (size_t b = 0, fetched = 0; b < w.K / kBlock && fetched < bytes; ++b, fetched += run) {
    FetchBytes(w.base + (b * w.N + outputs.begin) * 16, std::min(run, bytes - fetched));
    fetched += FetchRest(w, b, outputs);
  }
}
inline void FetchChannelMajor(const Nested& w, Range blocks, Range outputs, size_t bytes) {
  const size_t run = (outputs.end - outputs.begin) / 2;
  size_t fetched = 0;
  for (size_t b = blocks.begin; b < blocks.end && fetched < bytes; ++b) {
    for (size_t k = b * kBlock; k < (b + 1) * kBlock && fetched < bytes; ++k, fetched += run) {
      FetchBytes(w.base + k * (w.N / 2) + outputs.begin / 2, run);
    }
    fetched += FetchRest(w, b, outputs);
  }
}

}  // namespace sol
