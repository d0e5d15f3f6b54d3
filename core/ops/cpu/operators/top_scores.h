// The rows of the highest scores of a vector, in ascending order. Of equal scores the lower rows are taken.
//
// Most scores are never looked at one by one: the largest of every group of 16 gives a bound that enough scores reach, and few reach it that
// are not among the highest.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "cpu/threads/arena.h"

namespace sol {

class TopScores {
 public:
  static constexpr size_t kGroup = 16;

  TopScores() = default;
  // Of n scores the highest `count`, from 1 to n.
  TopScores(size_t n, size_t count, Arena& arena)
      : n_(n), count_(count), largest_(arena.Take<uint32_t>(Groups())), reached_(arena.Take<uint32_t>(n)), reached_rows_(arena.Take<uint32_t>(n)),
        counts_(arena.Take<uint32_t>(size_t{1} << kDigit)), rows_(arena.Take<uint32_t>(count)) {}

  // Looks at scores[begin … end - 1], for which begin is a multiple of kGroup, and end too unless it is n. Different ranges may run at once.
  void Look(const float* scores, size_t begin, size_t end) const {
    for (size_t at = begin; at < end; at += kGroup) {
      float largest = -std::numeric_limits<float>::infinity();
      for (size_t i = at; i < std::min(at + kGroup, end); ++i) largest = scores[i] > largest ? scores[i] : largest;
      largest_[at / kGroup] = Rank(largest);
    }
  }

  // The rows [count]. All scores must have been looked at. Where some are not numbers, which rows they are is not said.
  const uint32_t* Select(const float* scores) const {
    const uint32_t bound = Groups() < count_ ? UINT32_MAX : Lowest(largest_, Groups()).rank;
    size_t reached = 0;
    for (size_t group = 0; group < Groups(); ++group) {
      if (largest_[group] > bound) continue;
      for (size_t i = group * kGroup; i < std::min((group + 1) * kGroup, n_); ++i) {
        const uint32_t rank = Rank(scores[i]);
        reached_[reached] = rank;
        reached_rows_[reached] = static_cast<uint32_t>(i);
        reached += rank <= bound ? 1 : 0;
      }
    }
    Place last = Lowest(reached_, reached);
    uint32_t* row = rows_;
    for (size_t i = 0; i < reached; ++i) {
      if (reached_[i] > last.rank || (reached_[i] == last.rank && last.equal == 0)) continue;
      if (reached_[i] == last.rank) --last.equal;
      *row++ = reached_rows_[i];
    }
    return rows_;
  }

 private:
  static constexpr int kDigit = 11;  // bits of a rank that are told apart at once

  // The rank at place count_, and how many of its equals are among the first count_.
  struct Place {
    uint32_t rank;
    size_t equal;
  };

  size_t Groups() const { return (n_ + kGroup - 1) / kGroup; }

  // Higher scores have lower ranks, and what is no number has the lowest one.
  static uint32_t Rank(float score) {
    uint32_t bits;
    const float same = score + 0.0f;  // both zeros are equal
    std::memcpy(&bits, &same, sizeof(bits));
    return score != score ? 0 : bits >> 31 != 0 ? bits : bits ^ 0x7FFFFFFFu;
  }

  // Of ranks[0 … n - 1], n at least count_, in ascending order: finds one digit of the rank after the other.
  Place Lowest(const uint32_t* ranks, size_t n) const {
    uint64_t prefix = 0;  // the digits found so far
    size_t left = count_;
    for (int shift = 32; shift > 0;) {
      const int above = shift;
      shift = std::max(0, shift - kDigit);
      const uint32_t digits = uint32_t{1} << (above - shift);
      std::fill_n(counts_, digits, 0u);
      for (size_t i = 0; i < n; ++i) {
        if (uint64_t{ranks[i]} >> above == prefix) ++counts_[ranks[i] >> shift & (digits - 1)];
      }
      uint32_t digit = 0;
      while (left > counts_[digit]) left -= counts_[digit++];
      prefix = prefix << (above - shift) | digit;
    }
    return {static_cast<uint32_t>(prefix), left};
  }

  size_t n_ = 0, count_ = 0;
  uint32_t* largest_ = nullptr;       // [groups] the lowest rank of each
  uint32_t* reached_ = nullptr;       // [n] ranks of the scores that reach the bound
  uint32_t* reached_rows_ = nullptr;  // [n] their rows
  uint32_t* counts_ = nullptr;        // by digit
  uint32_t* rows_ = nullptr;          // [count]
};

}  // namespace sol
