#include "cpu/matmul/packed_matrix.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>
#include <vector>

#include "cpu/threads/team.h"

#ifndef _WIN32
#include <sys/mman.h>
#endif

namespace sol {
namespace {

constexpr size_t kSlack = 256;  // whole vectors may be read past the end
constexpr size_t kLine = 64;
constexpr size_t kSlab = 16 << 20, kLargePage = 2 << 20;

}  // namespace

// Memory for copies, which goes back to the system with the last of them. Copies of small matrices share it: alone, none would fill a large page.
class Slab {
 public:
  // Throws std::bad_alloc.
  explicit Slab(size_t bytes) : bytes_(bytes + kLargePage) {
#ifdef _WIN32
    memory_ = static_cast<uint8_t*>(::operator new(bytes_, std::align_val_t{kLine}));
#else
    void* const memory = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes_, MADV_HUGEPAGE);  // where it fails, pages are small, which costs a step up to a tenth
#endif
    memory_ = static_cast<uint8_t*>(memory);
#endif
    free_ = (kLargePage - reinterpret_cast<uintptr_t>(memory_) % kLargePage) % kLargePage;
  }
  ~Slab() {
#ifdef _WIN32
    ::operator delete(memory_, std::align_val_t{kLine});
#else
    munmap(memory_, bytes_);
#endif
  }
  Slab(const Slab&) = delete;
  Slab& operator=(const Slab&) = delete;

  // Null where so many bytes are not left.
  uint8_t* Take(size_t bytes) {
    if (bytes_ - free_ < bytes) return nullptr;
    return memory_ + std::exchange(free_, std::min(bytes_, free_ + (bytes + kLine - 1) / kLine * kLine));
  }

 private:
  const size_t bytes_;
  uint8_t* memory_;
  size_t free_;  // where the free part begins
};

namespace {

// Copies a panel of one split.
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

// Places in a copy at 3 bits at which the parts of the panel of output n begin.
struct CodebookPanelAt {
  CodebookPanelAt(const Nested& w, size_t n) : low(n * w.K / 4), high((w.N * 2 + n) * w.K / 8), block_scale(w.N * w.K * 3 / 8 + n * w.K / kBlock) {}

  size_t low, high, block_scale;
};

// Copies outputs n … n + 255 of a matrix of 3 bits.
void PackCodebookPanel(const Nested& w, size_t n, uint8_t* data) {
  constexpr size_t kLow = kCodebookPanel / 4, kHigh = kCodebookPanel / 8;
  const CodebookPanelAt at(w, n);
  for (size_t k = 0; k < w.K; ++k) {
    std::memcpy(data + at.low + k * kLow, w.low + k * (w.N / 4) + n / 4, kLow);
    std::memcpy(data + at.high + k * kHigh, w.high + k * (w.N / 8) + n / 8, kHigh);
  }
  for (size_t b = 0; b < w.K / kBlock; ++b) std::memcpy(data + at.block_scale + b * kCodebookPanel, w.block_scale + b * w.N + n, kCodebookPanel);
}

// Bytes of an output in a block of a copy.
size_t CopiedBytes(const Nested& w) { return w.bits == 3 ? kBlock * 3 / 8 + 1 : kPackedBytes; }

// The copies that there are, by what they are made of.
struct Known {
  const uint8_t* of;
  size_t K, N, splits;
  std::weak_ptr<const PackedMatrix> copy;
};
std::mutex copies_mutex;
std::weak_ptr<const PackedMatrix>& CopyOf(const Nested& w, size_t splits) {
  static auto* const copies = new std::vector<Known>();  // outlives every session
  const uint8_t* const of = w.bits == 3 ? w.low : w.base;
  Known* free = nullptr;
  for (Known& known : *copies) {
    if (known.of == of && known.K == w.K && known.N == w.N && known.splits == splits) return known.copy;
    if (known.copy.expired()) free = &known;
  }
  if (free == nullptr) free = &copies->emplace_back();
  *free = {of, w.K, w.N, splits, {}};
  return free->copy;
}

}  // namespace

PackedMatrix::PackedMatrix(const Context& context, const Nested& w, size_t splits) {
  static auto* const newest = new std::weak_ptr<Slab>();  // outlives every session
  const size_t bytes = w.K / kBlock * w.N * CopiedBytes(w) + kSlack, width = w.bits == 3 ? kCodebookPanel : kPanel, panels = (w.N + width - 1) / width;
  slab_ = newest->lock();
  uint8_t* data = slab_ != nullptr ? slab_->Take(bytes) : nullptr;
  if (data == nullptr) {
    *newest = slab_ = std::make_shared<Slab>(std::max(bytes, kSlab));
    data = slab_->Take(bytes);
  }
  data_ = data;
  context.ParallelFor(splits * panels, [&](size_t task) {
    if (w.bits == 3) return PackCodebookPanel(w, task * kCodebookPanel, data);
    PackPanel(w, ShareOf(w.K / kBlock, 1, task / panels, splits), task % panels * kPanel, data);
  });
}

Nested PackedMatrix::Panel(const Nested& w, size_t n) const {
  const CodebookPanelAt at(w, n);
  Nested panel = w;
  panel.low = data_ + at.low;
  panel.high = data_ + at.high;
  panel.block_scale = data_ + at.block_scale;
  panel.output_scale = w.output_scale + n;
  panel.in_order = true;
  panel.N = kCodebookPanel;
  return panel;
}

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
