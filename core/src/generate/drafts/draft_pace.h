// Decides how many tokens to draft: as many as make the text fastest, by the share of drafted tokens that were kept and by the times of runs, as both were
// measured in the session. Where no draft pays, it has a short one tried now and then. A text's drafts are paid from what they have saved so far, two steps,
// and 0.5% of its steps: a text of which too much was expected is hardly slower.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <map>

#include "bundle/action.h"

namespace sol_rt {

class DraftPace {
 public:
  void BeginText() { credit_ = kFirstCredit; }
  // Tokens to draft, 0 to `most`, of a guess whose source is alike for `match` tokens. The action runs them. More than `gain` tokens a step are wanted.
  size_t Choose(const Action& action, size_t match, size_t most, double gain);
  // Learns from such a guess: of its `drafted` tokens the first `kept` were those of the text; one after them was compared, too.
  void Kept(size_t match, size_t drafted, size_t kept);
  // Credits the tokens of another draft that the text kept.
  void Saved(size_t kept) { credit_ = std::min(credit_ + static_cast<double>(kept), kMostCredit); }
  // A run of so many tokens took so long.
  void Took(const Action& action, size_t tokens, double ms);
  // A step of a draft under the action took so long.
  void Drew(const Action& action, const Action& dense, double ms);
  // Time of a step over that of `dense`; `otherwise` before both were measured.
  double Ratio(const Action& action, const Action& dense, double otherwise) const;
  // True if the action's steps were measured, and not long ago.
  bool Measured(const Action& action) const;
  // Time of a run over that of a step, 1 or more.
  double Price(const Action& action, size_t tokens) const;
  double credit() const { return credit_; }  // steps that a draft may take

 private:
  static constexpr size_t kClasses = 5;  // of `match`: 1, 2, 3, 4 to 7, 8 and more
  static constexpr size_t kSizes = 4;    // of runs: 2, 3 to 4, 5 to 8, 9 and more tokens
  static constexpr double kGuess = 0.15;
  static constexpr double kFirstCredit = 2.0;  // steps
  static constexpr double kMostCredit = 8.0;   // steps: a text that repeats itself no more soon draws on no more

  // Median of the last values: one run that was held up changes nothing.
  template <size_t kCount>
  class Recent {
   public:
    explicit Recent(double first) { values_.fill(first); }
    void Add(double value) { values_[next_++ % kCount] = value; }
    double Median() const {
      std::array<double, kCount> sorted = values_;
      std::nth_element(sorted.begin(), sorted.begin() + kCount / 2, sorted.end());
      return sorted[kCount / 2];
    }

   private:
    std::array<double, kCount> values_;
    size_t next_ = 0;
  };

  struct Times {
    int64_t steps = 0;
    int64_t runs = 0;  // of several tokens, since the last step
    Recent<3> step_ms{0.0};
    // By size, what each token after the first adds, in steps. At first a guess.
    std::array<Recent<3>, kSizes> added{Recent<3>(kGuess), Recent<3>(kGuess), Recent<3>(kGuess), Recent<3>(kGuess)};
  };

  static void Step(Times& times, double ms);
  static size_t ClassOf(size_t match);
  static size_t SizeOf(size_t tokens);

  std::array<double, kClasses> kept_{0.15, 0.3, 0.5, 0.7, 0.9};  // share of drafted tokens, at first a guess
  std::map<Action, Times> times_;
  int idle_ = 0;  // guesses that were not drafted, since the last draft
  double credit_ = kFirstCredit;  // steps that drafts of this text may take beyond those of the text
};

}  // namespace sol_rt
