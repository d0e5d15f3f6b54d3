#include "budget/measure/tune_operators.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "budget/measure/timed_step.h"

namespace sol_rt {
namespace {

constexpr size_t kLeastRounds = 4, kMostRounds = 200;
constexpr double kFastMs = 15.0;  // a step that takes longer is timed once in a round
constexpr double kLeastGainOfCopies = 1.05;  // they take memory
constexpr double kStandardErrors = 4.0;  // of the mean gain; noise alone gets the best of three there in 3% of tries of four rounds
constexpr double kScatter = 0.1;  // largest distance of the quartiles of steady gains, as a share of their median
constexpr int32_t kSmallTeam = 4;  // threads from which on half of them is tried: two of a core share its way to memory

// The defaults come first.
std::vector<Tuning> Candidates(int32_t threads, bool wide) {
  std::vector<Tuning> tried;
  for (const uint32_t level : {2u, 1u}) {
    for (const uint32_t ahead : {12288u, 49152u, 6144u, 24576u}) {
      if (wide || ahead == 12288 || ahead == 49152) tried.push_back({level, ahead, 0, false});
    }
  }
  if (threads >= kSmallTeam) tried.push_back({2, 12288, static_cast<uint32_t>(threads / 2), false});
  return tried;
}

// Applied when it goes out of scope: until a choice is made, what was there before.
struct Chosen {
  EngineFactory& factory;
  Tuning tuning = factory.tuning();
  explicit Chosen(EngineFactory& owner) : factory(owner) {}
  Chosen(const Chosen&) = delete;
  ~Chosen() { factory.SetTuning(tuning); }
};

// Milliseconds of steps under each setting: of each action, in each round.
struct Rounds {
  std::vector<std::vector<std::vector<double>>> ms;  // [settings, actions, rounds]
  bool enough() const { return ms[0][0].size() >= kLeastRounds; }
  std::vector<std::vector<double>> gains() const {  // [settings, rounds]: geometric means over the actions
    std::vector<std::vector<double>> found(ms.size(), std::vector<double>(ms[0][0].size(), 1.0));
    for (size_t i = 0; i < ms.size(); ++i) {
      for (size_t round = 0; round < found[i].size(); ++round) {
        for (size_t a = 0; a < ms[i].size(); ++a) found[i][round] *= std::pow(ms[0][a][round] / ms[i][a][round], 1.0 / static_cast<double>(ms[i].size()));
      }
    }
    return found;
  }
};

// The settings take turns, in another order each time. With `warm_up` the first round does not count.
Rounds TimeRounds(EngineFactory& factory, Engine& engine, int64_t length, const std::vector<Tuning>& tried, const std::vector<Action>& actions, double seconds,
                  bool warm_up, const Progress& progress) {
  // The first step under a setting finds another one's leftovers in the caches.
  const int each = TimedStep(engine, length, actions[0]) < kFastMs ? 2 : 1;
  Rounds rounds{std::vector<std::vector<std::vector<double>>>(tried.size(), std::vector<std::vector<double>>(actions.size()))};
  std::vector<size_t> order(tried.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(0);
  Clock::time_point began = Clock::now();
  for (size_t count = warm_up ? 0 : 1; count <= kMostRounds; ++count) {
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t index : order) {
      factory.SetTuning(tried[index], true);
      for (size_t a = 0; a < actions.size(); ++a) {
        double ms = INFINITY;
        for (int i = 0; i < each; ++i) ms = std::min(ms, TimedStep(engine, length, actions[a]));
        if (count > 0) rounds.ms[index][a].push_back(ms);
      }
    }
    if (count == 0) {
      began = Clock::now();
      continue;
    }
    const double spent = SecondsSince(began);
    if (progress) progress("trying settings of the processor", static_cast<uint64_t>(1e3 * std::min(spent, seconds)), static_cast<uint64_t>(1e3 * seconds));
    if (spent >= seconds && count >= kLeastRounds) break;
    if (spent * kLeastRounds > 2 * seconds * static_cast<double>(count)) break;  // too slow for as many rounds as it takes
  }
  return rounds;
}

}  // namespace

size_t ChooseSetting(const std::vector<std::vector<double>>& gains, double least) {
  size_t best = 0;
  for (size_t i = 1; i < gains.size(); ++i) {
    if (Quantile(gains[i], 0.5) > Quantile(gains[best], 0.5)) best = i;
  }
  double sum = 0.0, squares = 0.0;
  for (const double gain : gains[best]) {
    sum += std::log(gain);
    squares += std::log(gain) * std::log(gain);
  }
  const auto count = static_cast<double>(gains[best].size());
  const double error = std::sqrt(std::max(squares - sum * sum / count, 0.0) / (count - 1) / count);
  const bool clear = Quantile(gains[best], 0.5) >= least && Quantile(gains[best], 0.1) > 1.0 && sum / count > kStandardErrors * error;
  return clear ? best : 0;  // one of many is often ahead by chance
}

bool IsSteady(const std::vector<std::vector<double>>& gains) {
  double scatter = 0.0;
  for (size_t i = 1; i < gains.size(); ++i) scatter += (Quantile(gains[i], 0.75) - Quantile(gains[i], 0.25)) / Quantile(gains[i], 0.5);
  return scatter <= kScatter * static_cast<double>(gains.size() - 1);
}

Tuned TuneOperators(EngineFactory& factory, Engine& engine, int64_t length, const Action& dense, const Action& cheapest, const TuneEffort& effort,
                    const Progress& progress) {
  const std::vector<Tuning> tried = Candidates(factory.threads(), effort.wide);
  Chosen chosen(factory);
  const Rounds rounds = TimeRounds(factory, engine, length, tried, {dense, cheapest}, effort.seconds, false, progress);
  size_t best = 0;
  Tuned found;
  if (rounds.enough()) {  // a slow model is slow again in an hour, so its times count as steady
    const std::vector<std::vector<double>> gains = rounds.gains();
    best = ChooseSetting(gains);
    if (best != 0) found.gain = Quantile(gains[best], 0.5);
    found.steady = IsSteady(gains);
  }
  found.dense_ms = Quantile(rounds.ms[best][0], 0.25);
  found.tuning = chosen.tuning = tried[best];
  return found;
}

std::optional<double> TuneCopies(EngineFactory& factory, Engine& engine, int64_t length, double seconds) {
  const Action whole = Action::Parse("k100-s100-q4");
  if (engine.config().variants.count(whole.Variant()) == 0 || !factory.RoomForCopies()) return std::nullopt;
  Chosen chosen(factory);
  chosen.tuning.copies = false;
  Tuning copied = chosen.tuning;
  copied.copies = true;
  const Rounds rounds = TimeRounds(factory, engine, length, {chosen.tuning, copied}, {whole}, seconds, true, nullptr);
  if (!rounds.enough()) return std::nullopt;
  const std::vector<std::vector<double>> gains = rounds.gains();
  if (ChooseSetting(gains, kLeastGainOfCopies) == 0) return 1.0;
  chosen.tuning = copied;
  return Quantile(gains[1], 0.5);
}

}  // namespace sol_rt
