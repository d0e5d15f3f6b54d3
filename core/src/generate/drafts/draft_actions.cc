#include "generate/drafts/draft_actions.h"

#include <algorithm>
#include <cmath>

#include "budget/hull/losses.h"

namespace sol_rt {
namespace {

constexpr double kLeastGain = 1.05;      // tokens a step that a draft has to promise
constexpr double kMostLoss = 0.15;       // nats, of an action that may draft
constexpr double kCheaper = 0.9;         // most that an action may cost over the one before, in the bundle's order: to save less is not worth its tries
constexpr double kLostPerRoot = 0.4;     // share of tokens not kept, over the root of the loss in nats, on ordinary text
constexpr double kUnknownKept = 0.8;     // share of an action whose loss was not measured
constexpr int kFirstWait = 8;            // steps without a draft after which a short one is tried: one held-up run may have ended the drafts
constexpr int kMostWait = 256;           // each try that changes nothing doubles them up to this
constexpr size_t kShort = 2;             // tokens of that
constexpr double kNewShare = 1.0 / 32;   // weight of a new token in a share
constexpr double kNewInClass = 1.0 / 16;
constexpr double kRounding = 1e-9;

size_t ClassOf(double probability) { return probability < 0.5 ? 0 : probability < 0.8 ? 1 : probability < 0.97 ? 2 : 3; }

}  // namespace

void DraftActions::Offer(const Config& config, const CostModel& cost, int64_t context) {
  dense_ = config.dense;
  const double dense = cost.Step(dense_, context);
  const ActionLosses losses(config);
  std::vector<Candidate> known;
  known.swap(candidates_);
  double most = kCheaper;
  for (const ActionEntry& entry : config.actions) {
    const double loss = losses.At(entry.action, context), price = cost.Step(entry.action, context) / dense;
    if (loss > kMostLoss || price > most) continue;
    most = kCheaper * price;
    const auto found = std::find_if(known.begin(), known.end(), [&](const Candidate& one) { return one.action == entry.action; });
    if (found != known.end()) {
      candidates_.push_back(*found);
      candidates_.back().cost = price;
    } else {
      const double kept = std::isnan(loss) ? kUnknownKept : 1.0 - kLostPerRoot * std::sqrt(std::max(loss, 0.0));
      candidates_.push_back({entry.action, price, kept, {0.5, 0.75, 0.93, 0.99}});
    }
  }
}

double DraftActions::Gain(const Candidate& candidate, const DraftPace& pace, size_t most) const {
  const double step = Step(candidate, pace);
  double gain = 1.0, tokens = 1.0, all_kept = 1.0;
  for (size_t drafted = 1; drafted <= most; ++drafted) {
    all_kept *= candidate.kept;
    tokens += all_kept;
    gain = std::max(gain, tokens / (static_cast<double>(drafted) * step + pace.Price(dense_, drafted + 1)));
  }
  return gain;
}

double DraftActions::Choose(const DraftPace& pace, size_t most) {
  classes_.clear();
  gain_ = all_kept_ = 1.0;
  for (size_t i = 0; i < candidates_.size(); ++i) {
    const double gain = Gain(candidates_[i], pace, most);
    if (i > 0 && gain <= gain_) continue;
    gain_ = gain;
    now_ = i;
  }
  return gain_;
}

const Action* DraftActions::Begin() {
  pays_ = gain_ >= kLeastGain;
  if (candidates_.empty() || (!pays_ && ++idle_ < wait_)) return nullptr;
  idle_ = 0;
  wait_ = pays_ ? kFirstWait : std::clamp(2 * wait_, kFirstWait, kMostWait);
  return &candidates_[now_].action;
}

bool DraftActions::Goes(const DraftPace& pace, size_t most) const {
  const size_t drawn = classes_.size();
  if (drawn >= (pays_ ? most : std::min(most, kShort))) return false;
  const Candidate& candidate = candidates_[now_];
  const double step = Step(candidate, pace);
  if (step + pace.Price(dense_, drawn + 2) - 1.0 > pace.credit()) return false;
  if (!pays_) return true;
  double kept = all_kept_, tokens = 0.0;  // a token alone may not pay where some together do
  for (size_t more = 1; drawn + more <= most; ++more) {
    kept *= candidate.kept;
    tokens += kept;
    const double price = static_cast<double>(more) * step + pace.Price(dense_, drawn + more + 1) - pace.Price(dense_, drawn + 1);
    if (tokens >= gain_ * price - kRounding) return true;
  }
  return false;
}

void DraftActions::Drew(DraftPace& pace, double probability, double ms) {
  const Candidate& candidate = candidates_[now_];
  pace.Drew(candidate.action, dense_, ms);
  classes_.push_back(ClassOf(probability));
  all_kept_ *= candidate.class_kept[classes_.back()];
}

void DraftActions::Kept(size_t drafted, size_t kept) {
  Candidate& candidate = candidates_[now_];
  for (size_t i = 0; i < std::min(drafted, kept + 1); ++i) {
    const double share = i < kept ? 1.0 : 0.0;
    double& class_kept = candidate.class_kept[classes_[i]];
    candidate.kept += kNewShare * (share - candidate.kept);
    class_kept += kNewInClass * (share - class_kept);
  }
}

}  // namespace sol_rt
