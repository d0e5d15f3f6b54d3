#include "budget/measure/measure_costs.h"

#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <optional>
#include <random>
#include <set>

#include "base/error.h"
#include "budget/measure/timed_step.h"
#include "budget/measure/tune_operators.h"

namespace sol_rt {
namespace {

constexpr double kSeconds = 2.0;
constexpr int64_t kContext = 16;       // tokens
constexpr size_t kLeastRounds = 7;
constexpr int kSteps = 3;              // of each variant in a round, of which the fastest counts
constexpr double kSlowMs = 15.0;       // a dense step that takes longer is timed once in a round
constexpr double kScatter = 0.1;       // largest distance of the quartiles of steady ratios, as a share of their median
constexpr int kWarmUp = 2;

}  // namespace

double PolicyMs(PolicyRunner& policy, Engine& engine, int64_t length, const Action& before) {
  const Config& config = engine.config();
  const PolicySpec& spec = *config.policy;
  const std::vector<float> hidden(static_cast<size_t>(config.model.hidden_size)), scalars(spec.scalars.size());
  std::vector<double> times;
  for (int step = 0; step < static_cast<int>(kLeastRounds) + kWarmUp; ++step) {
    TimedStep(engine, length, before);
    const Clock::time_point start = Clock::now();
    policy.Decide({hidden.data(), 0, &scalars, 0, step % spec.horizon});
    if (step >= kWarmUp) times.push_back(SecondsSince(start) * 1e3);
  }
  return Quantile(times, 0.25);
}

std::string IsoTime(std::time_t time) {
  std::tm parts{};
#ifdef _WIN32
  gmtime_s(&parts, &time);
#else
  gmtime_r(&time, &parts);
#endif
  char text[40];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S+00:00", &parts);
  return text;
}

TimedEngine::TimedEngine(EngineFactory& factory, const Config& config, int64_t max_context) : length(std::min(kContext, max_context - 1)) {
  if (max_context < 2) UsageFault("max_context: got 1, expected at least 2, as a step needs a token before it; load the model with a larger one");
  engine = factory.MakeEngine(max_context);
  const std::shared_ptr<const CostModel> bytes = MakeBytesCost(config);
  for (const std::string& key : config.variant_order) {
    actions.push_back(Action::Parse("k100-" + key));
    if (actions.back() == config.dense) dense_place = actions.size() - 1;
    if (bytes->Step(actions.back(), length) < bytes->Step(actions[cheapest_place], length)) cheapest_place = actions.size() - 1;
  }
  std::vector<int32_t> tokens;
  for (int64_t token = 0; token < length; ++token) tokens.push_back(static_cast<int32_t>(token % config.model.vocab_size));
  engine->Forward(tokens.data(), tokens.size(), config.dense);
  for (const Action& action : actions) TimedStep(*engine, length, action);  // makes the sessions
}

CostTable MeasureCosts(EngineFactory& factory, const Bundle& bundle, int64_t max_context, const Progress& progress) {
  const Config& config = bundle.config();
  const TimedEngine timed(factory, config, max_context);
  Engine& engine = *timed.engine;
  const int64_t length = timed.length;
  const std::vector<Action>& actions = timed.actions;
  const size_t dense = timed.dense_place;
  const int each = TimedStep(engine, length, config.dense) < kSlowMs ? kSteps : 1;
  const std::shared_ptr<const CostModel> bytes = MakeBytesCost(config);
  std::optional<Tuning> tuning;
  if (factory.native()) tuning = TuneOperators(factory, engine, length, timed.dense(), timed.cheapest(), {}, progress).tuning;

  // The variants take turns, in another order each time. A variant's time is the dense step's lower quartile times the median of its ratios to the dense
  // steps of the same rounds, which a machine that slows down for a while does not change.
  std::vector<std::vector<double>> rounds;
  std::mt19937 random(0);
  std::vector<size_t> order(actions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::vector<double> middle(actions.size());
  const Clock::time_point began = Clock::now();
  bool steady = false;
  for (bool first = true;; first = false) {
    std::vector<double> row(actions.size());
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t index : order) {
      row[index] = TimedStep(engine, length, actions[index]);
      for (int i = 1; i < each; ++i) row[index] = std::min(row[index], TimedStep(engine, length, actions[index]));
    }
    if (first) continue;  // the first round warms up
    rounds.push_back(std::move(row));
    const double spent = SecondsSince(began);
    if (progress) progress("measuring what actions cost", static_cast<uint64_t>(1e3 * std::min(spent, 3 * kSeconds)), static_cast<uint64_t>(3e3 * kSeconds));
    if (spent <= 3 * kSeconds && (rounds.size() < kLeastRounds || spent < kSeconds)) continue;
    double scatter = 0.0;
    for (size_t i = 0; i < actions.size(); ++i) {
      std::vector<double> ratios;
      for (const std::vector<double>& times : rounds) ratios.push_back(times[i] / times[dense]);
      middle[i] = Quantile(ratios, 0.5);
      scatter += (Quantile(ratios, 0.75) - Quantile(ratios, 0.25)) / middle[i];
    }
    steady = rounds.size() >= kLeastRounds && scatter / static_cast<double>(actions.size()) <= kScatter;
    if (steady || spent > 3 * kSeconds) break;
  }
  std::vector<double> dense_times;
  for (const std::vector<double>& times : rounds) dense_times.push_back(times[dense]);
  const double dense_ms = Quantile(dense_times, 0.25);

  // A line's slopes are those of the bytes model, at the rate at which the dense step reads bytes here.
  const double rate = middle[dense] * dense_ms / bytes->Step(config.dense, length);
  std::set<int> densities{100};
  for (const ActionEntry& entry : config.actions) densities.insert(entry.action.kv);
  CostTable table;
  table.bundle = bundle.identity();
  table.device = factory.Device();
  table.created = IsoTime(std::time(nullptr));
  table.quick = true;
  table.steady = steady;
  table.tuning = tuning;
  for (size_t i = 0; i < actions.size(); ++i) {
    const CostLine line = bytes->Line(actions[i]);
    const double ms = middle[i] * dense_ms;
    CostTable::Line made;
    made.fixed = std::max(ms - rate * line.per_token * static_cast<double>(length + 1), 0.0);
    made.per_token = rate * line.per_token;
    made.per_page = rate * line.per_page;
    for (const int density : densities) table.lines[config.variant_order[i]][density] = made;
  }
  if (const std::unique_ptr<PolicyRunner> policy = factory.MakePolicyRunner()) table.policy_ms = PolicyMs(*policy, engine, length, timed.cheapest());
  return table;
}

}  // namespace sol_rt
