// The KV cache that all variants of a bundle share: keys, values and key codes of the layers that attend. Graphs append to it in place.
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
  size_t layer;
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
  // Whole pages. A large page would be filled again as a whole where a part of it was given back, so such memory has small ones.
  void UseSmallPages(size_t offset, size_t bytes);
  void Discard(size_t offset, size_t bytes);   // whole pages whose content nobody needs any more, but which may be written again
  void GiveBack(size_t offset, size_t bytes);  // whole pages that nobody needs any more

  static size_t PageBytes();

 private:
  uint8_t* data_ = nullptr;
  size_t size_ = 0;
};

// Layers with a window read no token before it. Of them the cache gives back what lies further back than `kSlack` tokens: buffers keep their shape, and
// their memory there goes back to the system.
class KvCache {
 public:
  static constexpr int64_t kSlack = 512;  // rewinds by as many tokens run nothing again
  static constexpr int64_t kStep = 256;   // tokens that are given back at a time, a multiple of the page size

  // `whole`: every token is kept in layers with a window, too.
  KvCache(const ModelDims& model, const KvLayout& layout, bool whole);

  const std::vector<CacheBuffer>& buffers() const { return buffers_; }
  int64_t capacity() const { return capacity_; }  // tokens
  uint8_t* data(size_t buffer) const { return memory_.data() + offsets_[buffer]; }
  size_t BufferBytes(size_t buffer) const { return BufferBytes(buffer, capacity_); }
  std::vector<int64_t> Shape(size_t buffer) const;
  uint64_t BytesAt(int64_t capacity) const { return Bytes(capacity, false); }  // taken at most; what is beyond any memory is not counted exactly
  int64_t CapacityFor(int64_t tokens) const;  // the next multiple of the layout's capacity step

  // True if a token after the first `length` tokens finds all that its attention reads.
  bool Holds(int64_t length) const { return length >= shortest_; }
  // Gives back what layers with a window no longer need of `length` tokens.
  void Discard(int64_t length);
  void Forget() { HoldFrom(std::vector<int64_t>(windows_.size(), 0)); }  // a new text: nothing of it has been given back
  // By layer, the first token that is held. Of a file they are to be checked by `Possible`.
  const std::vector<int64_t>& firsts() const { return firsts_; }
  bool Possible(const std::vector<int64_t>& firsts, int64_t length) const;
  void HoldFrom(std::vector<int64_t> firsts);

  // Moves what is held of the first `used` tokens into buffers of another capacity, one by one, so that little memory is held twice. Throws
  // std::bad_alloc; the cache is then as it was.
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
  uint64_t Bytes(int64_t capacity, bool reserved) const;
  int64_t MostKept(size_t buffer) const;  // tokens between two runs; 0: all
  std::vector<size_t> Offsets(int64_t capacity) const;  // of each buffer, and the end

  int64_t heads_, page_size_, capacity_step_, capacity_ = 0;
  bool whole_;
  std::vector<int32_t> windows_;  // by layer, 0: all
  std::vector<int64_t> firsts_;   // by layer
  int64_t shortest_ = 0;          // text after which a token finds what it reads
  int64_t due_ = 0;               // tokens from which on something is given back
  std::vector<CacheBuffer> buffers_;
  std::vector<size_t> offsets_;
  SystemMemory memory_;
};

}  // namespace sol_rt
