#include "budget/measure/profile.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>

#include "base/error.h"
#include "budget/measure/measure_costs.h"
#include "budget/measure/timed_step.h"

namespace sol_rt {
namespace {

constexpr int kWarmUp = 2, kLeast = 5;  // repeats
constexpr double kFillShare = 0.3;      // of the time, that filling the cache to a context may take
constexpr double kPromptToken = 0.1;    // decode steps that a token of a prompt takes, for the progress
constexpr int kReweightings = 30;
constexpr double kSmallResidual = 1e-3;  // relative: below it residuals count by their square, as noise does

using Row = std::array<double, 3>;

double Dot(const Row& a, const Row& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }

// Coefficients of the columns in `used` that minimize the sum of weights * (row . x - 1)^2; 0 for a column that adds nothing to those before it.
Row LeastSquares(const std::vector<Row>& rows, const std::vector<double>& weights, const std::array<bool, 3>& used) {
  double matrix[3][4] = {};
  for (size_t n = 0; n < rows.size(); ++n) {
    for (int i = 0; i < 3; ++i) {
      for (int j = 0; j < 3; ++j) matrix[i][j] += weights[n] * rows[n][i] * rows[n][j];
      matrix[i][3] += weights[n] * rows[n][i];
    }
  }
  const Row size{matrix[0][0], matrix[1][1], matrix[2][2]};
  std::array<bool, 3> kept = used;
  for (int i = 0; i < 3; ++i) {
    if (!used[i] || !(matrix[i][i] > 1e-12 * size[i])) {
      kept[i] = false;
      continue;
    }
    for (int other = 0; other < 3; ++other) {
      const double share = matrix[other][i] / matrix[i][i];
      for (int j = 0; other != i && j < 4; ++j) matrix[other][j] -= share * matrix[i][j];
    }
  }
  Row found{};
  for (int i = 0; i < 3; ++i) found[i] = kept[i] ? matrix[i][3] / matrix[i][i] : 0.0;
  return found;
}

// The same for absolute values, by iteratively reweighted least squares.
Row LeastAbsolute(const std::vector<Row>& rows, const std::array<bool, 3>& used) {
  std::vector<double> weights(rows.size(), 1.0);
  Row found{};
  for (int step = 0; step < kReweightings; ++step) {
    found = LeastSquares(rows, weights, used);
    for (size_t n = 0; n < rows.size(); ++n) weights[n] = 1 / std::max(std::abs(Dot(rows[n], found) - 1), kSmallResidual);
  }
  return found;
}

}  // namespace

CostTable::Line FitLine(const std::vector<Sample>& samples) {
  std::vector<Row> rows;
  std::vector<double> times;
  for (const Sample& sample : samples) {
    times.push_back(sample.ms);
    rows.push_back({1 / sample.ms, sample.tokens / sample.ms, sample.pages / sample.ms});
  }
  if (times.empty() || !std::all_of(times.begin(), times.end(), [](double ms) { return ms > 0 && std::isfinite(ms); })) {
    throw Error(SOL_ERROR_NUMERIC, "profile: no usable timing; run `sol-rt profile` again on an idle machine");
  }
  Row best{Quantile(times, 0.5), 0.0, 0.0};
  double least = INFINITY;
  // Three coefficients: trying every set of non-zero ones, smaller sets first, finds the non-negative optimum exactly.
  for (const int set : {1, 2, 4, 3, 5, 6, 7}) {
    const Row found = LeastAbsolute(rows, {(set & 1) != 0, (set & 2) != 0, (set & 4) != 0});
    if (std::min({found[0], found[1], found[2]}) < 0) continue;
    double residuals = 0.0;
    for (const Row& row : rows) residuals += std::abs(Dot(row, found) - 1);
    if (residuals >= least - 1e-12) continue;
    least = residuals;
    best = found;
  }
  double squares = 0.0;
  for (const Row& row : rows) squares += std::pow(Dot(row, best) - 1, 2);
  CostTable::Line line;
  line.fixed = best[0];
  line.per_token = best[1];
  line.per_page = best[2];
  line.error = std::sqrt(squares / static_cast<double>(rows.size()));
  return line;
}

Profile ProfileSteps(Engine& engine, PolicyRunner* policy, const ProfilePlan& plan, const Interrupted& interrupted, const Progress& progress) {
  const Config& config = engine.config();
  std::set<int, std::greater<int>> densities{100};
  for (const ActionEntry& entry : config.actions) densities.insert(entry.action.kv);
  Profile profile;
  for (const std::string& key : config.variant_order) {
    for (const int density : densities) {
      profile.actions.push_back(Action::Parse("k100-" + key));
      profile.actions.back().kv = density;
    }
  }
  const auto steps_at = static_cast<double>(profile.actions.size()) * (plan.repeats + kWarmUp);
  const double all = steps_at * static_cast<double>(plan.contexts.size()) + kPromptToken * static_cast<double>(plan.contexts.back());
  double done = 0.0;
  const auto report = [&](const std::string& what, double share) {
    if (progress) progress(what.c_str(), static_cast<uint64_t>(std::min(done + share, all)), static_cast<uint64_t>(all));
  };
  engine.Truncate(0);
  std::vector<size_t> order(profile.actions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::mt19937 random(0);
  const Clock::time_point began = Clock::now();
  double per_token = 0.0;  // seconds that filling the cache took for each token so far
  for (size_t number = 0; number < plan.contexts.size(); ++number) {
    const int64_t length = plan.contexts[number], held = engine.length();
    if (static_cast<double>(length - held) * per_token > kFillShare * plan.seconds) break;
    std::vector<int32_t> tokens;  // any will do: a step costs the same for all of them
    for (int64_t token = held; token < length; ++token) tokens.push_back(static_cast<int32_t>(token % config.model.vocab_size));
    report("filling the cache to " + std::to_string(length), 0.0);
    const Clock::time_point start = Clock::now();
    engine.Forward(tokens.data(), tokens.size(), config.dense, interrupted);
    per_token = SecondsSince(start) / static_cast<double>(tokens.size());
    done += kPromptToken * static_cast<double>(tokens.size());
    const double left = (plan.seconds - SecondsSince(began)) / static_cast<double>(plan.contexts.size() - number);
    const Clock::time_point timing = Clock::now();
    std::vector<std::vector<double>> times(profile.actions.size());
    for (int repeat = 0; repeat < plan.repeats + kWarmUp; ++repeat) {
      if (repeat >= kLeast + kWarmUp && SecondsSince(timing) > left) break;
      RequireNotInterrupted(interrupted);
      std::shuffle(order.begin(), order.end(), random);  // so that no action always follows one of its own graph
      for (const size_t index : order) {
        const double ms = TimedStep(engine, length, profile.actions[index]);
        if (repeat >= kWarmUp) times[index].push_back(ms);
      }
      report("timing at " + std::to_string(length), static_cast<double>(profile.actions.size()) * (repeat + 1));
    }
    done += steps_at;
    engine.Truncate(length);
    profile.ms.emplace_back();
    for (const std::vector<double>& each : times) profile.ms.back().push_back(Quantile(each, 0.25));
  }
  const std::shared_ptr<const CostModel> bytes = MakeBytesCost(config);
  const int64_t length = engine.length();
  size_t cheapest = 0;
  std::map<std::string, std::vector<Sample>> samples;
  for (size_t index = 0; index < profile.actions.size(); ++index) {
    const Action& action = profile.actions[index];
    if (action.kv == 100 && bytes->Step(action, length) < bytes->Step(profile.actions[cheapest], length)) cheapest = index;
    for (size_t number = 0; number < profile.ms.size(); ++number) {
      const CostModel::MeanReads reads = bytes->Reads(action, plan.contexts[number]);
      samples[action.Variant()].push_back({reads.tokens, reads.pages, profile.ms[number][index]});
    }
  }
  if (policy != nullptr) {
    report("timing the policy", 0.0);
    profile.policy_ms = PolicyMs(*policy, engine, length, profile.actions[cheapest]);
  }
  for (const auto& [variant, taken] : samples) {
    const CostTable::Line line = FitLine(taken);
    for (const int density : densities) profile.lines[variant][density] = line;
  }
  engine.Truncate(0);
  return profile;
}

}  // namespace sol_rt
