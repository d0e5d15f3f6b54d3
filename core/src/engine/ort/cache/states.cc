#include "engine/ort/cache/states.h"

#include <algorithm>
#include <limits>
#include <new>
#include <utility>

namespace sol_rt {

States::States(const ModelDims& model, const KvLayout& layout) : hidden_(model.hidden_size), size_(layout.conv_size - 1) {
  for (int32_t layer = 0; layer < model.num_layers; ++layer) {
    if (layout.Convolves(layer)) layers_.push_back(layer);
  }
}

size_t States::Numbers() const {
  const uint64_t numbers = static_cast<uint64_t>(layers_.size()) * static_cast<uint64_t>(hidden_ * size_);  // at most 2^10 * 2^20 * 31
  if (numbers > std::numeric_limits<size_t>::max() / (sizeof(float) * (2 + kLast + kMostCopies))) throw std::bad_alloc();
  return static_cast<size_t>(numbers);
}

uint64_t States::Bytes() const {
  size_t numbers = states_.size() + written_.size();
  for (const Copy& copy : kept_) numbers += copy.states.size();
  for (const Copy& copy : last_) numbers += copy.states.size();
  return numbers * sizeof(float);
}

void States::Reserve() {
  if (!states_.empty()) return;
  const size_t numbers = Numbers();
  for (Copy& copy : last_) copy.states.resize(numbers);
  written_.resize(numbers);
  states_.resize(numbers);
}

void States::Commit(int64_t length) {
  Copy& copy = last_[static_cast<size_t>(length) % kLast];
  std::copy(written_.begin(), written_.end(), copy.states.begin());
  copy.length = length;
  Replace(copy.states, length);
}

void States::Keep() {
  if (length_ <= 0) return;
  const auto at = std::lower_bound(kept_.begin(), kept_.end(), length_, [](const Copy& copy, int64_t length) { return copy.length < length; });
  if (at != kept_.end() && at->length == length_) {
    at->states = states_;
  } else {
    try {
      kept_.insert(at, {length_, states_});
    } catch (const std::bad_alloc&) {
      return;  // without the copy a rewind runs more tokens again; the token that was just computed must not be lost for it
    }
  }
  if (kept_.size() <= kMostCopies) return;
  const auto gap = [&](size_t i) {
    const int64_t between = kept_[i + 1].length - kept_[i - 1].length;
    return static_cast<double>(between) / static_cast<double>(kept_.back().length - kept_[i].length);
  };
  size_t closest = 1;
  for (size_t i = 2; i + 1 < kept_.size(); ++i) {
    if (gap(i) < gap(closest)) closest = i;
  }
  kept_.erase(kept_.begin() + static_cast<std::ptrdiff_t>(closest));
}

void States::Forget(int64_t length) {
  while (!kept_.empty() && kept_.back().length > length) kept_.pop_back();
  for (Copy& copy : last_) {
    if (copy.length > length) copy.length = -1;
  }
}

void States::Restore(int64_t length) {
  Forget(length);
  const Copy* nearest = kept_.empty() ? nullptr : &kept_.back();
  for (const Copy& copy : last_) {
    if (copy.length > 0 && (nearest == nullptr || copy.length >= nearest->length)) nearest = &copy;
  }
  if (nearest != nullptr) {
    Reserve();  // not for the start of a text: no graph may have shown yet that the config's sizes are true
    Replace(nearest->states, nearest->length);
  } else {
    std::fill(states_.begin(), states_.end(), 0.0f);
    length_ = 0;
  }
}

void States::Replace(const std::vector<float>& states, int64_t length) {
  std::copy(states.begin(), states.end(), states_.begin());  // in place: graphs are bound to the buffer
  length_ = length;
}

bool States::Possible(const std::vector<Copy>& kept, const std::vector<Copy>& last, int64_t length) {
  int64_t before = 0;
  for (const Copy& copy : kept) {
    if (copy.length <= before || copy.length > length) return false;
    before = copy.length;
  }
  std::array<bool, kLast> taken{};
  for (const Copy& copy : last) {
    if (copy.length <= 0 || copy.length > length || std::exchange(taken[static_cast<size_t>(copy.length) % kLast], true)) return false;
  }
  return true;
}

void States::TakeOver(std::vector<Copy> kept, std::vector<Copy> last) {
  Forget(0);
  kept_ = std::move(kept);
  for (Copy& copy : last) last_[static_cast<size_t>(copy.length) % kLast] = std::move(copy);
  length_ = -1;
}

}  // namespace sol_rt
