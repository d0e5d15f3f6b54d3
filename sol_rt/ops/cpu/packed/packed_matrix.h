// A copy of a channel-major matrix's base, scales and zero points in the order in which a product reads them.
//
// A product reads 64 bytes of each of a block's 32 rows, then the next 64: single lines of memory, of which a core keeps few under way. In the copy they
// follow each other, so the processor's own prefetching sees one stream. On some processors steps take two thirds of the time by it, on others as long; a
// copy takes memory of this process. So it is made where the settings ask for it (SolOpsCopies). It changes no result.
//
// Products of which many rows are inactive read the matrix itself: the processor would ask for the copy's inactive rows, too.
//
// The copy has a part for each split of the product along K, a part a panel of 128 outputs after the other, the last one narrower, and a panel of w outputs
// a record for each block of 32 channels: base [32, w/2], scale [w], zero [w].
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "common/onnx/node.h"
#include "cpu/matmul/matmul_kernels.h"

namespace sol {

constexpr size_t kPanel = 128;                   // outputs
constexpr size_t kPackedBytes = kBlock / 2 + 3;  // of an output in a block

enum class CopiesUse : uint32_t { kNone, kRead, kKeep };
inline std::atomic<CopiesUse> copies_use{CopiesUse::kNone};  // what SolOpsCopies set

// Where the weights of outputs n, n + 1, … of a block lie.
struct BlockPlace {
  const uint8_t* base;
  const uint16_t* scale;
  const uint8_t* zero;
  size_t stride;  // of the base's rows, in bytes
};

// In a copy; the block is one of a split's blocks `first` … `end` - 1. n is even.
inline BlockPlace PlaceInCopy(const uint8_t* packed, size_t N, size_t first, size_t end, size_t block, size_t n) {
  const size_t panel = n / kPanel * kPanel, width = std::min(kPanel, N - panel), in = n - panel;
  const uint8_t* record = packed + (first * N + (end - first) * panel + (block - first) * width) * kPackedBytes;
  return {record + in / 2, reinterpret_cast<const uint16_t*>(record + width * 16) + in, record + width * 18 + in, width / 2};
}

class PackedMatrix {
 public:
  // Throws std::bad_alloc.
  PackedMatrix(const Context& context, const Nested& w, size_t splits);
  ~PackedMatrix();
  PackedMatrix(const PackedMatrix&) = delete;
  PackedMatrix& operator=(const PackedMatrix&) = delete;

  const uint8_t* Data() const { return data_; }

 private:
  const size_t bytes_;
  uint8_t* const data_;
};

// The copy that a product has, if any. The products of several graphs with one matrix share it.
class PackedCopy {
 public:
  // The copy to read in a step, made now if there is none; null where the settings ask for none, or memory is short. It stays at least as long as the
  // pointer.
  std::shared_ptr<const PackedMatrix> Get(const Context& context, const Nested& w, size_t splits);

 private:
  std::mutex mutex_;
  std::shared_ptr<const PackedMatrix> copy_;
  bool failed_ = false;
};

}  // namespace sol
