// Plans scripted runs, so that runtime_tests/core/test_native_budget.py can compare the actions and costs with the Python runtime's.
//
// Reads a JSON document from the standard input: `config` (a sol_config.json), `table` (a cost table's file) with `identity` or null, and
// `runs`. A run has a `dial` or a `replay`, and `steps`: inputs of the planner, answers of the policy, and settings of the host before the step.
// Writes what came of each run as JSON, or how many nanoseconds a step takes if the argument is `time`. With the arguments `table FILE` it writes a
// cost table as it has read it.
#include <chrono>
#include <fstream>
#include <iostream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "budget/cost/cost_table.h"
#include "budget/planner.h"

namespace {

using Json = nlohmann::json;
using sol_rt::Action;

Action ActionOf(const Json& tag) { return Action::Parse(tag.get<std::string>()); }

sol_rt::Config ReadConfig(const Json& raw, const Json& variant_order) {
  sol_rt::Config config;
  const Json &model = raw["model"], &kv = raw["kv"];
  config.model.num_layers = model["num_layers"];
  config.model.num_kv_heads = model["num_kv_heads"];
  config.model.hidden_size = model["hidden_size"];
  config.model.head_dim = model["head_dim"];
  config.model.max_context = model["max_context"];
  config.kv.dtype = kv["dtype"];
  config.kv.page_size = kv["page_size"];
  config.kv.sinks = kv["sinks"];
  config.kv.dense_layers = kv["dense_layers"].get<std::vector<int32_t>>();
  config.kv.windows = kv.value("windows", std::vector<int32_t>());
  for (const std::string& kind : kv.value("layers", std::vector<std::string>())) config.kv.convolves.push_back(kind == "conv");
  config.kv.conv_size = kv.value("conv_size", 0);
  config.dense = ActionOf(raw["dense"]);
  for (const std::string key : variant_order) {
    const Json& entry = raw["variants"][key];
    sol_rt::Variant& variant = config.variants[key];
    variant.key = key;
    variant.channel_density = entry["channel_density"];
    variant.bits = entry["bits"] == "mixed" ? sol_rt::kMixedBits : entry["bits"].get<int>();
    variant.weight_bytes = entry["weight_bytes"];
    config.variant_order.push_back(key);
  }
  for (const Json& entry : raw["actions"]) {
    sol_rt::ActionEntry action{ActionOf(entry["tag"]), {}, {}};
    if (!entry["loss"].is_null()) action.loss = entry["loss"].get<double>();
    if (entry.contains("losses")) {
      for (const auto& [context, loss] : entry["losses"].items()) action.losses[std::stoll(context)] = loss;
    }
    config.actions.push_back(action);
  }
  if (const Json& policy = raw["policy"]; !policy.is_null()) {
    config.policy.emplace();
    config.policy->file = policy["file"];
    config.policy->horizon = policy["horizon"];
    config.policy->scalars = policy["scalars"].get<std::vector<std::string>>();
    for (const Json& tag : policy["actions"]) config.policy->actions.push_back(ActionOf(tag));
    config.policy->gain_over_hull = policy.value("gain_over_hull", 0.0);
    config.policy->gain_budgets = policy.value("gain_budgets", std::array<double, 2>{0.0, 1.0});
  }
  for (const auto& [name, file] : raw["files"].items()) config.files[name].bytes = file["bytes"];
  return config;
}

// Answers what the script says.
class ScriptedPolicy final : public sol_rt::PolicyRunner {
 public:
  void Reset() override { ++resets; }
  const std::vector<float>& Decide(const float*, int32_t, const std::vector<float>& scalars, int64_t previous, int64_t step) override {
    seen.push_back({scalars, previous, step});
    return logits;
  }
  std::vector<float> logits;
  int resets = 0;
  Json seen = Json::array();
};

// JSON has no text for numbers that are not finite: they come as strings.
std::optional<double> Given(const Json& dial, const char* key) {
  if (!dial.contains(key)) return std::nullopt;
  return dial[key].is_string() ? std::stod(dial[key].get<std::string>()) : dial[key].get<double>();
}

sol_rt::Dial ReadDial(const Json& raw) {
  sol_rt::Dial dial;
  dial.budget = Given(raw, "budget");
  dial.kv_density = Given(raw, "kv_density");
  dial.channel_density = Given(raw, "channel_density");
  dial.bits = Given(raw, "bits");
  dial.tokens_per_second = Given(raw, "tokens_per_second");
  dial.max_loss = Given(raw, "max_loss");
  if (raw.contains("schedule")) dial.schedule = raw["schedule"].get<std::string>();
  if (raw.contains("seed")) dial.seed = raw["seed"].get<uint64_t>();
  return dial;
}

Json Optional(std::optional<double> value) { return value ? Json(*value) : Json(); }

Json Refused(const sol_rt::Error& error) { return {{"code", error.code()}, {"text", error.what()}}; }

class Run {
 public:
  Run(const sol_rt::Config& config, std::shared_ptr<const sol_rt::CostModel> cost, const Json& script) {
    if (script.contains("replay")) {
      std::vector<Action> actions;
      for (const Json& tag : script["replay"]["actions"]) actions.push_back(ActionOf(tag));
      planner_ = sol_rt::MakeReplayPlanner(config, cost, script["replay"]["schedule"], actions, script["replay"]["budget"]);
    } else {
      planner_ = sol_rt::MakePlanner(config, cost, ReadDial(script["dial"]), config.policy ? &policy_ : nullptr);
    }
    for (const Json& raw : script["steps"]) {
      Step step;
      step.logits = raw["logits"].get<std::vector<float>>();
      step.policy = raw["policy"].get<std::vector<float>>();
      step.seen = {raw["context"], raw["token"], nullptr, {}, raw["step"]};
      step.seen.distribution.size = static_cast<int32_t>(step.logits.size());
      step.seen.distribution.top = raw["sums"][0];
      step.seen.distribution.total = raw["sums"][1];
      step.seen.distribution.moment = raw["sums"][2];
      step.seen.distribution.second = raw["sums"][3];
      step.budget = Given(raw, "set_budget");
      step.rate = Given(raw, "set_tokens_per_second");
      steps_.push_back(std::move(step));
    }
  }

  Json Play() {
    Json steps = Json::array();
    for (const Step& step : steps_) {
      Json done = Json::object();
      try {
        if (step.budget) planner_->SetBudget(*step.budget);
        if (step.rate) planner_->SetTokensPerSecond(*step.rate);
      } catch (const sol_rt::Error& error) {
        done["refused"] = Refused(error);
      }
      const Action action = Choose(step);
      const sol_rt::Charge charge = planner_->Record(action, step.seen.context);
      done.update({{"action", action.Tag()},
                   {"cost", charge.cost},
                   {"relative", charge.relative},
                   {"achieved", planner_->Achieved()},
                   {"requested", planner_->Requested()},
                   {"floored", planner_->Floored()},
                   {"fastest", Optional(planner_->FastestRate(step.seen.context + 1))}});
      steps.push_back(std::move(done));
    }
    return {{"schedule", planner_->Schedule()}, {"steps", steps},           {"loss", Optional(planner_->ExpectedLoss())},
            {"policy", policy_.seen},           {"resets", policy_.resets}};
  }

  double NanosecondsPerStep() {
    const auto begin = std::chrono::steady_clock::now();
    for (const Step& step : steps_) planner_->Record(Choose(step), step.seen.context);
    const std::chrono::duration<double, std::nano> passed = std::chrono::steady_clock::now() - begin;
    return passed.count() / static_cast<double>(steps_.size());
  }

 private:
  struct Step {
    std::vector<float> logits, policy;
    sol_rt::StepSeen seen;
    std::optional<double> budget, rate;  // that the host sets before the step
  };

  Action Choose(const Step& step) {
    sol_rt::StepSeen seen = step.seen;
    seen.distribution.logits = step.logits.data();
    policy_.logits = step.policy;
    return planner_->Choose(seen);
  }

  ScriptedPolicy policy_;
  std::unique_ptr<sol_rt::Planner> planner_;
  std::vector<Step> steps_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string mode = argc > 1 ? argv[1] : "";
  if (mode == "table" && argc > 2) {
    std::ifstream file(argv[2]);
    std::cout << sol_rt::CostTable::FromJson({std::istreambuf_iterator<char>(file), {}}).ToJson();
    return 0;
  }
  const bool time = mode == "time";
  const Json script = Json::parse(std::cin);
  Json results = Json::array();
  try {
    const sol_rt::Config config = ReadConfig(script["config"], script["variants"]);
    const auto cost = script["table"].is_null() ? sol_rt::MakeBytesCost(config)
                                                : sol_rt::ReadMeasuredCost(config, script["identity"], script["table"]);
    for (const Json& raw : script["runs"]) {
      try {
        Run run(config, cost, raw);
        results.push_back(time ? Json(run.NanosecondsPerStep()) : run.Play());
      } catch (const sol_rt::Error& error) {
        results.push_back({{"error", Refused(error)}});
      }
    }
  } catch (const sol_rt::Error& error) {
    results = Refused(error);
  }
  std::cout << results << "\n";
}
