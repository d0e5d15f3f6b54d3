#include "budget/measure/tune_operators.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>
#include <vector>

#include "budget/measure/timed_step.h"

namespace sol_rt {
namespace {

constexpr double kSeconds = 1.5;
constexpr size_t kLeastRounds = 4, kMostRounds = 200;
constexpr double kFastMs = 15.0;     // a step that takes longer is timed once in a round
constexpr double kLeastGain = 1.02;
constexpr double kStandardErrors = 4.0;  // of the mean gain; noise alone gets the best of three there in 3% of tries of four rounds
constexpr int32_t kSmallTeam = 4;    // threads from which on half of them is tried: two of a core share its way to memory

// The defaults come first. Copies of weights, which take memory, are for Python to try.
std::vector<Tuning> Candidates(int32_t threads) {
  std::vector<Tuning> tried{{2, 12288, 0, false}, {2, 49152, 0, false}, {1, 12288, 0, false}, {1, 49152, 0, false}};
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

}  // namespace

size_t ChooseSetting(const std::vector<std::vector<double>>& gains) {
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
  const bool clear = Quantile(gains[best], 0.5) >= kLeastGain && Quantile(gains[best], 0.1) > 1.0 && sum / count > kStandardErrors * error;
  return clear ? best : 0;  // one of many is often ahead by chance
}

Tuning TuneOperators(EngineFactory& factory, Engine& engine, int64_t length, const Action& dense, const Action& cheapest) {
  const std::vector<Tuning> tried = Candidates(factory.threads());
  Chosen chosen(factory);
  // The first step under a setting finds another one's leftovers in the caches.
  const int each = TimedStep(engine, length, dense) < kFastMs ? 2 : 1;
  const auto time = [&](const Tuning& tuning) {
    factory.SetTuning(tuning);
    double product = 1.0;
    for (const Action* action : {&dense, &cheapest}) {
      double ms = INFINITY;
      for (int i = 0; i < each; ++i) ms = std::min(ms, TimedStep(engine, length, *action));
      product *= ms;
    }
    return std::sqrt(product);
  };
  std::vector<std::vector<double>> gains(tried.size());
  std::vector<size_t> order(tried.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(0);
  const Clock::time_point began = Clock::now();
  for (size_t rounds = 1; rounds <= kMostRounds; ++rounds) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<double> times(tried.size());
    for (const size_t index : order) times[index] = time(tried[index]);
    for (size_t i = 0; i < tried.size(); ++i) gains[i].push_back(times[0] / times[i]);
    const double spent = SecondsSince(began);
    if (spent >= kSeconds && rounds >= kLeastRounds) break;
    if (spent * kLeastRounds > 2 * kSeconds * static_cast<double>(rounds)) break;  // too slow for as many rounds as it takes
  }
  chosen.tuning = tried[gains[0].size() < kLeastRounds ? 0 : ChooseSetting(gains)];
  return chosen.tuning;
}

}  // namespace sol_rt
