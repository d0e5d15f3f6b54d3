#include "cpu/matmul/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <vector>

#include "cpu/threads/team.h"

#ifndef _WIN32
#include <sys/mman.h>
#endif

namespace sol {
namespace {

constexpr size_t kSlack = 256;  // whole vectors may be read past the end

// Memory of its own, which goes back to the system with the copy. Throws std::bad_alloc.
#ifdef _WIN32
uint8_t* Allocate(size_t bytes) { return static_cast<uint8_t*>(::operator new(bytes, std::align_val_t{4096})); }
void Free(uint8_t* memory, size_t) { ::operator delete(memory, std::align_val_t{4096}); }
#else
uint8_t* Allocate(size_t bytes) {
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(memory, bytes, MADV_HUGEPAGE);  // where it fails, pages are small, which costs a step up to a tenth
#endif
  return static_cast<uint8_t*>(memory);
}
void Free(uint8_t* memory, size_t bytes) { munmap(memory, bytes); }
#endif

// A panel of one split.
void PackPanel(const Nested& w, Range blocks, size_t panel, uint8_t* data) {
  const size_t width = std::min(kPanel, w.N - panel);
  for (size_t b = blocks.begin; b < blocks.end; ++b) {
    const BlockPlace to = PlaceInCopy(data, w.N, blocks.begin, blocks.end, b, panel);
    uint8_t* const record = data + (to.base - data);
    for (size_t k = 0; k < kBlock; ++k) std::memcpy(record + k * to.stride, w.base + (b * kBlock + k) * (w.N / 2) + panel / 2, to.stride);
    std::memcpy(record + width * 16, w.scale + b * w.N + panel, width * 2);
    std::memcpy(record + width * 18, w.zero + b * w.N + panel, width);
  }
}

// The copies that there are, by what they are made of.
struct Known {
  const uint8_t* base;
  size_t K, N, splits;
  std::weak_ptr<const PackedMatrix> copy;
};
std::mutex copies_mutex;
std::weak_ptr<const PackedMatrix>& CopyOf(const Nested& w, size_t splits) {
  static auto* const copies = new std::vector<Known>();  // outlives every session
  Known* free = nullptr;
  for (Known& known : *copies) {
    if (known.base == w.base && known.K == w.K && known.N == w.N && known.splits == splits) return known.copy;
    if (known.copy.expired()) free = &known;
  }
  if (free == nullptr) free = &copies->emplace_back();
  *free = {w.base, w.K, w.N, splits, {}};
  return free->copy;
}

}  // namespace

PackedMatrix::PackedMatrix(const Context& context, const Nested& w, size_t splits)
    : bytes_(w.K / kBlock * w.N * kPackedBytes + kSlack), data_(Allocate(bytes_)) {
  const size_t panels = (w.N + kPanel - 1) / kPanel;
  try {
    context.ParallelFor(splits * panels, [&](size_t task) {
      PackPanel(w, ShareOf(w.K / kBlock, 1, task / panels, splits), task % panels * kPanel, data_);
    });
  } catch (...) {
    Free(data_, bytes_);
    throw;
  }
}

PackedMatrix::~PackedMatrix() { Free(data_, bytes_); }

std::shared_ptr<const PackedMatrix> PackedCopy::Get(const Context& context, const Nested& w, size_t splits) {
  const std::lock_guard<std::mutex> lock(mutex_);
  const CopiesUse use = copies_use.load(std::memory_order_relaxed);
  if (use == CopiesUse::kNone) copy_.reset();
  if (use != CopiesUse::kRead) return nullptr;
  if (copy_ != nullptr) return copy_;
  try {
    const std::lock_guard<std::mutex> all(copies_mutex);
    std::weak_ptr<const PackedMatrix>& known = CopyOf(w, splits);
    copy_ = known.lock();
    if (copy_ == nullptr) known = copy_ = std::make_shared<const PackedMatrix>(context, w, splits);
  } catch (const std::bad_alloc&) {  // the matrix itself serves as well
  }
  return copy_;
}

}  // namespace sol
