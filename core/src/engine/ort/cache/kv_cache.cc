#include "engine/ort/cache/kv_cache.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <new>
#include <utility>

#include "base/windows_api.h"

#ifndef _WIN32
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace sol_rt {
namespace {

constexpr uint64_t kMostBytes = sizeof(size_t) == 4 ? uint64_t{1} << 31 : uint64_t{1} << 46;  // no machine has as much memory

}  // namespace

#ifdef _WIN32
SystemMemory::SystemMemory(size_t bytes) : size_(bytes) {
  data_ = static_cast<uint8_t*>(VirtualAlloc(nullptr, bytes, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE));
  if (data_ == nullptr) throw std::bad_alloc();
}

SystemMemory::~SystemMemory() {
  if (data_ != nullptr) VirtualFree(data_, 0, MEM_RELEASE);
}

void SystemMemory::UseSmallPages(size_t, size_t) {}

void SystemMemory::Discard(size_t offset, size_t bytes) {
  if (bytes > 0) VirtualAlloc(data_ + offset, bytes, MEM_RESET, PAGE_READWRITE);
}

void SystemMemory::GiveBack(size_t offset, size_t bytes) {
  if (bytes > 0) VirtualFree(data_ + offset, bytes, MEM_DECOMMIT);
}

size_t SystemMemory::PageBytes() {
  SYSTEM_INFO info;
  GetSystemInfo(&info);
  return info.dwPageSize;
}
#else
SystemMemory::SystemMemory(size_t bytes) : size_(bytes) {
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mapped == MAP_FAILED) throw std::bad_alloc();
  data_ = static_cast<uint8_t*>(mapped);
#ifdef MADV_HUGEPAGE
  (void)madvise(mapped, bytes, MADV_HUGEPAGE);  // some kernels have no large pages
#endif
}

SystemMemory::~SystemMemory() {
  if (data_ != nullptr) munmap(data_, size_);
}

void SystemMemory::UseSmallPages(size_t offset, size_t bytes) {
#ifdef MADV_NOHUGEPAGE
  (void)madvise(data_ + offset, bytes, MADV_NOHUGEPAGE);
#else
  (void)offset, (void)bytes;
#endif
}

void SystemMemory::Discard(size_t offset, size_t bytes) { GiveBack(offset, bytes); }

void SystemMemory::GiveBack(size_t offset, size_t bytes) {
  if (bytes > 0) (void)madvise(data_ + offset, bytes, MADV_DONTNEED);
}

size_t SystemMemory::PageBytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }
#endif

SystemMemory::SystemMemory(SystemMemory&& other) noexcept : data_(std::exchange(other.data_, nullptr)), size_(std::exchange(other.size_, 0)) {}

SystemMemory& SystemMemory::operator=(SystemMemory&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

KvCache::KvCache(const ModelDims& model, const KvLayout& layout, bool whole)
    : heads_(model.num_kv_heads), page_size_(layout.page_size), capacity_step_(layout.capacity_step), whole_(whole), windows_(layout.windows) {
  windows_.resize(static_cast<size_t>(model.num_layers), 0);
  Forget();
  const bool int8 = layout.dtype == "int8";
  const int64_t width = model.head_dim;
  for (int32_t i = 0; i < model.num_layers; ++i) {
    if (layout.Convolves(i)) continue;
    const std::string layer = std::to_string(i);
    const auto index = static_cast<size_t>(i);
    for (const char* part : {"key", "value"}) {
      buffers_.push_back({"past_key_values." + layer + "." + part, "present." + layer + "." + part, width,
                          int8 ? CacheType::kInt8 : CacheType::kFloat16, index});
    }
    const auto add = [&](const std::string& part, int64_t size, CacheType type) {
      buffers_.push_back({"past_" + part + "." + layer, "present_" + part + "." + layer, size, type, index});
    };
    add("key_codes", width / 2, CacheType::kUInt8);
    add("key_range", 2, CacheType::kFloat16);
    if (int8) {
      add("key_scale", 0, CacheType::kFloat16);
      add("value_scale", 0, CacheType::kFloat16);
    }
  }
  offsets_ = Offsets(0);
}

size_t KvCache::BufferBytes(size_t buffer, int64_t capacity) const {
  return static_cast<size_t>(heads_) * static_cast<size_t>(capacity) * buffers_[buffer].TokenBytes();
}

std::vector<size_t> KvCache::Offsets(int64_t capacity) const {
  const size_t page = SystemMemory::PageBytes();
  std::vector<size_t> offsets{0};
  for (size_t i = 0; i < buffers_.size(); ++i) offsets.push_back(offsets.back() + (BufferBytes(i, capacity) + page - 1) / page * page);
  return offsets;
}

std::vector<int64_t> KvCache::Shape(size_t buffer) const {
  std::vector<int64_t> shape{1, heads_, capacity_};
  if (buffers_[buffer].width > 0) shape.push_back(buffers_[buffer].width);
  return shape;
}

int64_t KvCache::MostKept(size_t buffer) const {
  const int32_t window = windows_[buffers_[buffer].layer];
  return whole_ || window == 0 ? 0 : window + kSlack + kStep;
}

uint64_t KvCache::Bytes(int64_t capacity, bool reserved) const {
  uint64_t sum = 0;
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const int64_t most = reserved ? 0 : MostKept(i);
    const uint64_t tokens = static_cast<uint64_t>(most > 0 ? std::min(capacity, most) : capacity);
    const uint64_t token = static_cast<uint64_t>(heads_) * buffers_[i].TokenBytes();
    if (tokens > 0 && token > (kMostBytes - sum) / tokens) return kMostBytes;
    sum += token * tokens;
  }
  return sum;
}

int64_t KvCache::CapacityFor(int64_t tokens) const { return (tokens + capacity_step_ - 1) / capacity_step_ * capacity_step_; }

void KvCache::HoldFrom(std::vector<int64_t> firsts) {
  firsts_ = std::move(firsts);
  shortest_ = 0;
  due_ = std::numeric_limits<int64_t>::max();
  for (size_t layer = 0; layer < windows_.size(); ++layer) {
    if (windows_[layer] == 0) continue;
    if (firsts_[layer] > 0) shortest_ = std::max(shortest_, firsts_[layer] + windows_[layer] - 1);
    if (!whole_) due_ = std::min(due_, firsts_[layer] + windows_[layer] + kSlack + kStep);
  }
}

bool KvCache::Possible(const std::vector<int64_t>& firsts, int64_t length) const {
  for (size_t layer = 0; layer < windows_.size(); ++layer) {
    const int64_t first = firsts[layer];
    const bool whole_page = first % page_size_ == 0 || first == length;
    if (first < 0 || first > length || !whole_page || (first > 0 && windows_[layer] == 0)) return false;
  }
  return true;
}

void KvCache::Discard(int64_t length) {
  if (length < due_) return;
  const std::vector<int64_t> before = firsts_;
  std::vector<int64_t> firsts = before;
  for (size_t layer = 0; layer < windows_.size(); ++layer) {
    if (windows_[layer] > 0) firsts[layer] = std::max(firsts[layer], (length - windows_[layer] - kSlack) / kStep * kStep);
  }
  HoldFrom(firsts);
  const size_t page = SystemMemory::PageBytes();
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const size_t layer = buffers_[i].layer;
    for (int64_t head = 0; firsts[layer] > before[layer] && head < heads_; ++head) {
      const auto at = [&](int64_t token) { return static_cast<size_t>(Tokens(i, head, token) - memory_.data()); };
      // What shares a page with another head's tokens stays; what shared one with this head's later tokens goes now.
      const size_t begin = std::max((at(0) + page - 1) / page, at(before[layer]) / page) * page, end = at(firsts[layer]) / page * page;
      if (end > begin) memory_.Discard(begin, end - begin);
    }
  }
}

void KvCache::Resize(int64_t capacity, int64_t used) {
  if (Bytes(capacity, true) >= kMostBytes) throw std::bad_alloc();
  std::vector<size_t> offsets = Offsets(capacity);
  SystemMemory memory(offsets.back());
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const size_t token = buffers_[i].TokenBytes();
    const int64_t first = firsts_[buffers_[i].layer], most = MostKept(i);
    if (most > 0 && most < capacity) memory.UseSmallPages(offsets[i], offsets[i + 1] - offsets[i]);
    for (int64_t head = 0; used > first && head < heads_; ++head) {
      uint8_t* const to = memory.data() + offsets[i] + static_cast<size_t>(head * capacity + first) * token;
      std::memcpy(to, Tokens(i, head, first), static_cast<size_t>(used - first) * token);
    }
    if (memory_.data() != nullptr) memory_.GiveBack(offsets_[i], offsets_[i + 1] - offsets_[i]);
  }
  memory_ = std::move(memory);
  offsets_ = std::move(offsets);
  capacity_ = capacity;
}

void KvCache::Wipe(int64_t start, int64_t stop) {
  for (size_t i = 0; i < buffers_.size(); ++i) {
    for (int64_t head = 0; head < heads_; ++head) {
      std::memset(Tokens(i, head, start), 0, static_cast<size_t>(stop - start) * buffers_[i].TokenBytes());
    }
  }
}

}  // namespace sol_rt
