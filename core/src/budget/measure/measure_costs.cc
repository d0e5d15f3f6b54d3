#include "budget/measure/measure_costs.h"

#include <algorithm>
#include <cmath>
#include <ctime>
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

namespace {

std::string Now() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
#ifdef _WIN32
  gmtime_s(&parts, &now);
#else
  gmtime_r(&now, &parts);
#endif
  char text[40];
  std::strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%S+00:00", &parts);
  return text;
}

}  // namespace

CostTable MeasureCosts(EngineFactory& factory, const Bundle& bundle, int64_t max_context) {
  if (max_context < 2) UsageFault("max_context: got 1, expected at least 2, as a step needs a token before it; load the model with a larger one");
  const Config& config = bundle.config();
  const std::unique_ptr<Engine> made_engine = factory.MakeEngine(max_context);
  Engine& engine = *made_engine;
  std::vector<Action> actions;
  size_t dense = 0;
  for (const std::string& key : config.variant_order) {
    Action action;
    action.channels = static_cast<int>(std::lround(100 * config.variants.at(key).channel_density));
    action.bits = config.variants.at(key).bits;
    if (action == config.dense) dense = actions.size();
    actions.push_back(action);
  }
  const int64_t length = std::min(kContext, max_context - 1);
  std::vector<int32_t> tokens;
  for (int64_t token = 0; token < length; ++token) tokens.push_back(static_cast<int32_t>(token % config.model.vocab_size));
  engine.Forward(tokens.data(), tokens.size(), config.dense);
  for (const Action& action : actions) TimedStep(engine, length, action);  // makes the sessions
  const int each = TimedStep(engine, length, config.dense) < kSlowMs ? kSteps : 1;
  const std::shared_ptr<const CostModel> bytes = MakeBytesCost(config);
  size_t cheapest = dense;
  for (size_t i = 0; i < actions.size(); ++i) {
    if (bytes->Step(actions[i], length) < bytes->Step(actions[cheapest], length)) cheapest = i;
  }
  std::optional<Tuning> tuning;
  if (factory.native()) tuning = TuneOperators(factory, engine, length, config.dense, actions[cheapest]);

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
  table.created = Now();
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
  if (const std::unique_ptr<PolicyRunner> policy = factory.MakePolicyRunner()) table.policy_ms = PolicyMs(*policy, engine, length, actions[cheapest]);
  return table;
}

}  // namespace sol_rt
