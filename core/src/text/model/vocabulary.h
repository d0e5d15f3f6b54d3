// The vocabulary of a model: texts and ids of its tokens.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace sol_rt {

class Vocabulary {
 public:
  static constexpr int32_t kNone = -1;
  static constexpr uint32_t kLargestId = (1u << 24) - 1;

  // A token that is there already gets the new id. `id` is at most kLargestId. Throws Unsupported for texts that all hash alike.
  void Add(std::string_view token, uint32_t id);
  int32_t Find(std::string_view token) const;  // id, or kNone
  // Empty for an id that no token has.
  std::string_view Token(int32_t id) const { return Has(id) ? Text(by_id_[static_cast<size_t>(id)]) : std::string_view(); }
  bool Has(int32_t id) const { return id >= 0 && static_cast<size_t>(id) < by_id_.size() && by_id_[static_cast<size_t>(id)] != kEmpty; }
  size_t size() const { return entries_.size(); }
  int32_t LastId() const;  // the largest one; kNone in an empty vocabulary

 private:
  static constexpr uint32_t kEmpty = static_cast<uint32_t>(-1);
  struct Entry {
    uint64_t offset;  // in `texts_`
    uint32_t length;  // bytes
    uint32_t id;
  };

  std::string_view Text(uint32_t entry) const { return std::string_view(texts_).substr(entries_[entry].offset, entries_[entry].length); }
  size_t Slot(std::string_view token) const;
  void Grow();

  std::string texts_;
  std::vector<Entry> entries_;
  std::vector<uint32_t> slots_;  // entries by hash, or kEmpty; a power of two, at most half full
  std::vector<uint32_t> by_id_;  // entries by id, or kEmpty
};

}  // namespace sol_rt
