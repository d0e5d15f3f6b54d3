#include "text/model/vocabulary.h"

#include <algorithm>
#include <functional>

#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kMostProbes = 4096;  // a vocabulary that needs more was made to take long

}  // namespace

size_t Vocabulary::Slot(std::string_view token) const {
  const size_t mask = slots_.size() - 1;
  size_t slot = std::hash<std::string_view>()(token) & mask;
  for (size_t probes = 0; slots_[slot] != kEmpty && Text(slots_[slot]) != token; slot = (slot + 1) & mask) {
    if (++probes > kMostProbes) throw Unsupported("a vocabulary whose tokens hash alike", "a usual one");
  }
  return slot;
}

void Vocabulary::Grow() {
  slots_.assign(std::max<size_t>(1024, slots_.size() * 2), kEmpty);
  for (uint32_t i = 0; i < entries_.size(); ++i) slots_[Slot(Text(i))] = i;
}

void Vocabulary::Add(std::string_view token, uint32_t id) {
  if (entries_.size() * 2 >= slots_.size()) Grow();
  const size_t slot = Slot(token);
  uint32_t entry = slots_[slot];
  if (entry == kEmpty) {
    entry = slots_[slot] = static_cast<uint32_t>(entries_.size());
    entries_.push_back({texts_.size(), static_cast<uint32_t>(token.size()), id});
    texts_ += token;
  } else {
    const uint32_t before = entries_[entry].id;
    if (by_id_[before] == entry) by_id_[before] = kEmpty;
    entries_[entry].id = id;
  }
  if (by_id_.size() <= id) by_id_.resize(std::max<size_t>(id + size_t{1}, std::min<size_t>(by_id_.size() * 2, kLargestId + size_t{1})), kEmpty);
  by_id_[id] = entry;
}

int32_t Vocabulary::Find(std::string_view token) const {
  if (slots_.empty()) return kNone;
  const uint32_t entry = slots_[Slot(token)];
  return entry == kEmpty ? kNone : static_cast<int32_t>(entries_[entry].id);
}

int32_t Vocabulary::LastId() const {
  for (size_t id = by_id_.size(); id > 0; --id) {
    if (by_id_[id - 1] != kEmpty) return static_cast<int32_t>(id - 1);
  }
  return kNone;
}

}  // namespace sol_rt
