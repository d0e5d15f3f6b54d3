// A copy of a channel-major matrix in the order in which a product reads it: at 4 bits of base, scales and zero points, at 3 bits of codes and block scales.
//
// A product reads a line or two of each of a block's 32 rows, then the next ones: single lines of memory, of which a core keeps few under way. In the copy
// they follow each other, so the processor's own prefetching sees one stream. On some processors steps take two thirds of the time by it, on others as long;
// a copy takes memory of this process. So it is made where the settings ask for it (SolOpsCopies). It changes no result.
//
// Products of which many rows are inactive read the matrix itself: the processor would ask for the copy's inactive rows, too. At 3 bits only the LM head's
// screen has a copy, for its rows are all active.
//
// At 4 bits the copy has a part for each split of the product along K, a part a panel of 128 outputs after the other, the last one narrower, and a panel of
// w outputs a record for each block of 32 channels: base [32, w/2], scale [w], zero [w].
//
// At 3 bits N is a multiple of 256, and the copy has panels of 256 outputs: low [N/256, K, 64], high [N/256, K, 32], block_scale [N/256, K/32, 256].
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>

#include "common/onnx/node.h"
#include "cpu/matmul/matmul_kernels.h"

namespace sol {

enum class CopiesUse : uint32_t { kNone, kRead, kKeep };
inline std::atomic<CopiesUse> copies_use{CopiesUse::kNone};  // what SolOpsCopies set

class Slab;

class PackedMatrix {
 public:
  // The caller lets nobody else in the process make one meanwhile. Throws std::bad_alloc.
  PackedMatrix(const Context& context, const Nested& w, size_t splits);

  const uint8_t* Data() const { return data_; }
  // At 3 bits: the panel that begins with output n, a multiple of 256, as a matrix of its own. `w` is what the copy was made of.
  Nested Panel(const Nested& w, size_t n) const;

 private:
  std::shared_ptr<Slab> slab_;  // what data lies in
  const uint8_t* data_;
};

// The copy that a product has, if any. The products of several graphs with one matrix share it.
class PackedCopy {
 public:
  // The copy to read in a step, made now if there is none; null where the settings ask for none, or memory is short. It stays at least as long as the
  // pointer. `splits` are of the product along K, 1 at 3 bits.
  std::shared_ptr<const PackedMatrix> Get(const Context& context, const Nested& w, size_t splits);

 private:
  std::mutex mutex_;
  std::shared_ptr<const PackedMatrix> copy_;
};

}  // namespace sol
