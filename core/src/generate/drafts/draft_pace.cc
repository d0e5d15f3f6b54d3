#include "generate/drafts/draft_pace.h"

#include <algorithm>

namespace sol_rt {
namespace {

constexpr double kLeastGain = 1.03;     // tokens a step that a draft has to promise
constexpr int kLookAgain = 64;          // guesses after which a short draft is tried
constexpr size_t kShort = 3;            // tokens of that
constexpr double kNewShare = 1.0 / 12;  // weight of a new drafted token in a share
constexpr int64_t kFirstSteps = 2;      // steps before a time counts: the first ones make buffers
constexpr double kCreditStep = 0.005;   // credit for each step alone
constexpr int64_t kMostRuns = 12;       // in a row: then a step keeps its time up to date

}  // namespace

size_t DraftPace::ClassOf(size_t match) { return match < 4 ? match - 1 : match < 8 ? 3 : 4; }

size_t DraftPace::SizeOf(size_t tokens) { return tokens <= 2 ? 0 : tokens <= 4 ? 1 : tokens <= 8 ? 2 : 3; }

size_t DraftPace::Choose(const Action& action, size_t match, size_t most, double gain) {
  if (match == 0) return 0;
  while (most > 0 && Price(action, most + 1) - 1.0 > credit_) --most;
  if (most == 0) return 0;
  size_t best = 0;
  gain = std::max(gain, kLeastGain);
  double tokens = 1.0, all_kept = 1.0;
  for (size_t drafted = 1; drafted <= most; ++drafted) {
    all_kept *= kept_[ClassOf(match + drafted - 1)];  // each one that is kept makes the match longer
    tokens += all_kept;
    const double here = tokens / Price(action, drafted + 1);
    if (here > gain) {
      gain = here;
      best = drafted;
    }
  }
  if (best == 0 && ++idle_ >= kLookAgain) best = std::min(kShort, most);
  if (best > 0) idle_ = 0;
  return best;
}

void DraftPace::Kept(size_t match, size_t drafted, size_t kept) {
  for (size_t i = 0; i < std::min(drafted, kept + 1); ++i) {
    double& share = kept_[ClassOf(match + i)];
    share += kNewShare * ((i < kept ? 1.0 : 0.0) - share);
  }
  Saved(kept);
}

bool DraftPace::Measured(const Action& action) const {
  const auto found = times_.find(action);
  return found != times_.end() && found->second.steps > kFirstSteps && found->second.runs < kMostRuns;
}

void DraftPace::Step(Times& times, double ms) {
  times.runs = 0;
  if (++times.steps <= kFirstSteps) return;
  if (times.steps == kFirstSteps + 1) times.step_ms = Recent<3>(ms);
  times.step_ms.Add(ms);
}

void DraftPace::Drew(const Action& action, const Action& dense, double ms) {
  Step(times_[action], ms);
  credit_ -= ms / times_[dense].step_ms.Median();
}

double DraftPace::Ratio(const Action& action, const Action& dense, double otherwise) const {
  const auto own = times_.find(action), other = times_.find(dense);
  const bool measured = own != times_.end() && other != times_.end() && std::min(own->second.steps, other->second.steps) > kFirstSteps;
  return measured ? own->second.step_ms.Median() / other->second.step_ms.Median() : otherwise;
}

void DraftPace::Took(const Action& action, size_t tokens, double ms) {
  Times& times = times_[action];
  if (tokens == 1) {
    credit_ = std::min(credit_ + kCreditStep, kMostCredit);
    Step(times, ms);
    return;
  }
  ++times.runs;
  const double step_ms = times.step_ms.Median();
  if (step_ms <= 0.0) return;
  if (ms < step_ms) times.step_ms.Add(ms);  // a step takes no longer than a run: the machine has become faster
  const double added = std::clamp(ms / step_ms - 1.0, 0.0, static_cast<double>(tokens - 1));
  times.added[SizeOf(tokens)].Add(added / static_cast<double>(tokens - 1));
  credit_ -= added;
}

double DraftPace::Price(const Action& action, size_t tokens) const {
  const auto found = times_.find(action);
  if (tokens <= 1 || found == times_.end()) return 1.0;
  return 1.0 + found->second.added[SizeOf(tokens)].Median() * static_cast<double>(tokens - 1);
}

}  // namespace sol_rt
