// The KV cache that all variants of a bundle share: keys, values and key codes. Graphs append to it in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "bundle/config/config.h"

namespace sol_rt {

// Types of the cache's tensors.
enum class CacheType { kUInt8, kInt8, kFloat16 };

// One tensor of the cache, [1, kv_heads, capacity, width], or [1, kv_heads, capacity] if the width is 0.
struct CacheBuffer {
  std::string past, present;  // names of the graph input and output that are both bound to it
  int64_t width;              // numbers for each token and KV head
  CacheType type;
  size_t TokenBytes() const { return static_cast<size_t>(width == 0 ? 1 : width) * (type == CacheType::kFloat16 ? 2 : 1); }  // of one KV head
};

// Zeroed memory straight from the system, in large pages where it offers them: with small ones a step at a long context misses in the processor's address
// cache.
class SystemMemory {
 public:
  SystemMemory() = default;
  explicit SystemMemory(size_t bytes);  // throws std::bad_alloc
  ~SystemMemory();
  SystemMemory(SystemMemory&& other) noexcept;
  SystemMemory& operator=(SystemMemory&& other) noexcept;
  uint8_t* data() const { return data_; }
  void GiveBack(size_t offset, size_t bytes);  // whole pages whose content nobody needs any more

  static size_t PageBytes();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

class KvCache {
 public:
  KvCache(const ModelDims& model, const KvLayout& layout);

  const std::vector<CacheBuffer>& buffers() const { return buffers_; }
  int64_t capacity() const { return capacity_; }  // tokens
  uint8_t* data(size_t buffer) const { return memory_.data() + offsets_[buffer]; }
  size_t BufferBytes(size_t buffer) const { return BufferBytes(buffer, capacity_); }
  std::vector<int64_t> Shape(size_t buffer) const;
  uint64_t BytesAt(int64_t capacity) const;                     // what is beyond any memory is not counted exactly
  int64_t CapacityFor(int64_t tokens) const;  // the next multiple of the layout's capacity step

  // Moves the first `used` tokens into buffers of another capacity, one by one, so that little memory is held twice. Throws std::bad_alloc; the cache is
  // then as it was.
  void Resize(int64_t capacity, int64_t used);
  // Zeroes tokens `start` to `stop`, so that non-finite numbers that a step wrote reach no later masked sum. The key codes of a page's tokens are
  // interleaved, so some codes of earlier tokens go, too; they are computed again when the page next gets a token.
  void Wipe(int64_t start, int64_t stop);

  // One KV head's numbers of `count` tokens from `start` on.
  uint8_t* Tokens(size_t buffer, int64_t head, int64_t start) const {
    return data(buffer) + (static_cast<size_t>(head * capacity_ + start)) * buffers_[buffer].TokenBytes();
  }
  int64_t heads() const { return heads_; }

 private:
  size_t BufferBytes(size_t buffer, int64_t capacity) const;
  std::vector<size_t> Offsets(int64_t capacity) const;  // of each buffer, and the end

  int64_t heads_, capacity_step_, capacity_ = 0;
  std::vector<CacheBuffer> buffers_;
  std::vector<size_t> offsets_;
  SystemMemory memory_;
};

}  // namespace sol_rt
