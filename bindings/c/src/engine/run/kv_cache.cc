#include "engine/run/kv_cache.h"

#include <cstring>
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

KvCache::KvCache(const ModelDims& model, const KvLayout& layout) : heads_(model.num_kv_heads), capacity_step_(layout.capacity_step) {
  const bool int8 = layout.dtype == "int8";
  const int64_t width = model.head_dim;
  for (int32_t i = 0; i < model.num_layers; ++i) {
    const std::string layer = std::to_string(i);
    for (const char* part : {"key", "value"}) {
      buffers_.push_back({"past_key_values." + layer + "." + part, "present." + layer + "." + part, width, int8 ? CacheType::kInt8 : CacheType::kFloat16});
    }
    const auto add = [&](const std::string& part, int64_t size, CacheType type) {
      buffers_.push_back({"past_" + part + "." + layer, "present_" + part + "." + layer, size, type});
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

uint64_t KvCache::BytesAt(int64_t capacity) const {
  uint64_t token = 0;
  for (const CacheBuffer& buffer : buffers_) token += static_cast<uint64_t>(heads_) * buffer.TokenBytes();
  const uint64_t tokens = static_cast<uint64_t>(capacity);
  return tokens > 0 && token > kMostBytes / tokens ? kMostBytes : token * tokens;
}

int64_t KvCache::CapacityFor(int64_t tokens) const { return (tokens + capacity_step_ - 1) / capacity_step_ * capacity_step_; }

void KvCache::Resize(int64_t capacity, int64_t used) {
  if (BytesAt(capacity) >= kMostBytes) throw std::bad_alloc();
  std::vector<size_t> offsets = Offsets(capacity);
  SystemMemory memory(offsets.back());
  for (size_t i = 0; i < buffers_.size(); ++i) {
    const size_t token = buffers_[i].TokenBytes();
    for (int64_t head = 0; used > 0 && head < heads_; ++head) {
      std::memcpy(memory.data() + offsets[i] + static_cast<size_t>(head * capacity) * token, Tokens(i, head, 0), static_cast<size_t>(used) * token);
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
