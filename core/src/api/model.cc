// Models of the C interface: loading, what they hold, and what their actions cost.
#include <limits>

#include "api/border.h"
#include "api/costs.h"
#include "api/handles.h"
#include "base/file/atomic_file.h"
#include "base/file/user_data.h"
#include "budget/controller/controller.h"
#include "budget/measure/measure_costs.h"
#include "budget/measure/stored_costs.h"
#include "budget/measure/timed_step.h"
#include "budget/measure/tune_operators.h"
#include "budget/schedules/schedule.h"

using sol_rt::Guard;

namespace {

sol_model_options Defaults() {
  sol_model_options options{};
  options.verify = SOL_VERIFY_SMALL;
  return options;
}

sol_model_info InfoOf(const sol_model& handle) {
  const sol_rt::Model& model = *handle.model;
  const sol_rt::Config& config = model.config();
  sol_model_info info{};
  info.name = config.model.name.c_str();
  info.generator = config.generator.c_str();
  info.identity = model.identity().c_str();
  info.vocab_size = config.model.vocab_size;
  info.hidden_size = config.model.hidden_size;
  info.num_layers = config.model.num_layers;
  info.max_context = static_cast<int32_t>(model.max_context());
  info.num_actions = static_cast<int32_t>(handle.tags.size());
  info.has_policy = config.policy ? 1 : 0;
  info.has_losses = config.LossesMeasured() ? 1 : 0;
  info.has_tokenizer = model.tokenizer() ? 1 : 0;
  info.has_chat = model.chat() ? 1 : 0;
  info.native = model.factory() != nullptr && model.factory()->native() ? 1 : 0;
  info.default_schedule = sol_rt::DefaultSchedule(config, *model.cost(), {});
  info.cost_model = model.cost()->InMilliseconds() ? "measured" : "bytes";
  info.dense = handle.dense.c_str();
  info.mapped_bytes = model.factory() == nullptr ? 0 : model.factory()->mapped_bytes();
  info.cost_note = handle.costs.note.c_str();
  return info;
}

sol_cost_source SourceOf(const sol_model_options& given) {
  if (given.costs < SOL_COSTS_DEFAULT || given.costs > SOL_COSTS_MEASURED) {
    sol_rt::UsageFault("sol_model_options: costs: got " + std::to_string(given.costs) + ", expected a sol_cost_source");
  }
  if (given.costs != SOL_COSTS_DEFAULT) return given.costs;
  const std::string named = sol_rt::EnvironmentText("SOL_RT_COSTS");
  if (named.empty() || named == "measured") return SOL_COSTS_MEASURED;
  if (named == "profiled") return SOL_COSTS_PROFILED;
  if (named != "bytes") sol_rt::UsageFault("SOL_RT_COSTS: got " + sol_rt::Brief(named) + ", expected bytes, profiled or measured");
  return SOL_COSTS_BYTES;
}

// Costs of a load that names no table. Where the host's own device runs the model nothing is measured.
sol_rt::StoredCosts CostsOf(const sol_runtime* runtime, const sol_rt::Model& model, const sol_model_options& given, bool measured,
                            const sol_rt::Progress& progress) {
  const std::string folder = given.costs_folder == nullptr ? sol_rt::CostsFolder() : given.costs_folder;
  if (given.device == nullptr && measured) return runtime->FirstCosts(folder, model, progress);
  const std::string device = given.device == nullptr ? runtime->device() : given.device;
  return sol_rt::FindCosts(folder, model.config(), model.identity(), device, measured);
}

}  // namespace

namespace sol_rt {

void RequireFactory(const Model& model, const char* function) {
  if (model.factory() != nullptr) return;
  UsageFault(std::string(function) + ": got a model that was loaded without a runtime, expected one that has it; make sessions with sol_session_create_on");
}

}  // namespace sol_rt

extern "C" {

void sol_model_options_init(sol_model_options* options, uint32_t size) { sol_rt::InitStruct(Defaults(), options, size); }

sol_error* sol_model_load(sol_runtime* runtime, const char* folder, const sol_model_options* options, sol_model** model) {
  return Guard([&] {
    sol_rt::RequirePointer(model, "sol_model_load: model");
    *model = nullptr;
    sol_rt::RequirePointer(folder, "sol_model_load: folder");
    const sol_model_options given = sol_rt::ReadStruct(options, Defaults(), "sol_model_options");
    if (given.verify < SOL_VERIFY_NONE || given.verify > SOL_VERIFY_ALL) {
      sol_rt::UsageFault("sol_model_options: verify: got " + std::to_string(given.verify) + ", expected a sol_verify");
    }
    const sol_cost_source source = SourceOf(given);
    sol_rt::ModelOptions wanted;
    wanted.max_context = given.max_context;
    if (given.prefill != nullptr) wanted.prefill = given.prefill;
    if (given.cost_table != nullptr) wanted.cost_table = given.cost_table;
    sol_rt::Progress progress;
    if (given.progress != nullptr) {
      progress = [&given](const char* what, uint64_t done, uint64_t total) {
        if (given.progress(given.user, what, done, total) != 0) {
          throw sol_rt::Error(SOL_ERROR_HOST, "sol_model_load: the host's progress callback asked to stop");
        }
      };
    }
    auto made = std::make_unique<sol_model>();
    const auto bundle = std::make_shared<sol_rt::Bundle>(sol_rt::Bundle::Open(folder, given.verify, progress, runtime != nullptr));
    made->model = std::make_shared<sol_rt::Model>(bundle, runtime == nullptr ? nullptr : runtime->Open(bundle), wanted);
    if (given.cost_table == nullptr && source != SOL_COSTS_BYTES && (runtime != nullptr || given.device != nullptr)) {
      made->costs = CostsOf(runtime, *made->model, given, source == SOL_COSTS_MEASURED, progress);
      made->model->SetCost(made->costs.cost);
    }
    for (const sol_rt::ActionEntry& entry : made->model->config().actions) made->tags.push_back(entry.action.Tag());
    made->dense = made->model->config().dense.Tag();
    *model = made.release();
  });
}

void sol_model_release(sol_model* model) { delete model; }

sol_error* sol_model_get_info(const sol_model* model, sol_model_info* info) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_get_info");
    sol_rt::RequireSized(info, "sol_model_info");
    sol_rt::FillStruct(InfoOf(*model), info);
  });
}

sol_error* sol_model_get_action(const sol_model* model, int32_t index, sol_action_info* info) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_get_action");
    sol_rt::RequireSized(info, "sol_action_info");
    const auto count = static_cast<int32_t>(model->tags.size());
    if (index < 0 || index >= count) {
      sol_rt::UsageFault("sol_model_get_action: index: got " + std::to_string(index) + ", expected 0 to " + std::to_string(count - 1));
    }
    const sol_rt::Config& config = model->model->config();
    const sol_rt::ActionEntry& entry = config.actions[static_cast<size_t>(index)];
    const std::shared_ptr<const sol_rt::CostModel> cost = model->model->cost();
    sol_action_info made{};
    made.tag = model->tags[static_cast<size_t>(index)].c_str();
    made.relative_cost = cost->Step(entry.action, sol_rt::kReferenceContext) / cost->Step(config.dense, sol_rt::kReferenceContext);
    made.loss = entry.loss ? *entry.loss : std::numeric_limits<double>::quiet_NaN();
    sol_rt::FillStruct(made, info);
  });
}

sol_error* sol_model_measure_costs(sol_model* model, const char* file) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_measure_costs");
    sol_rt::Model& own = *model->model;
    sol_rt::RequireFactory(own, "sol_model_measure_costs");
    if (file != nullptr) own.bundle().RequireOutside("cost table", file);
    const sol_rt::CostTable table = sol_rt::MeasureCosts(*own.factory(), own.bundle(), own.max_context());
    own.SetCost(sol_rt::MakeMeasuredCost(own.config(), table));
    if (file != nullptr) sol_rt::WriteFileAtomically(file, table.ToJson());
  });
}

sol_error* sol_model_get_cost_table(const sol_model* model, sol_cost_table* table) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_get_cost_table");
    sol_rt::RequireSized(table, "sol_cost_table");
    sol_rt::FillStruct(sol_rt::CostTableOf(model->costs), table);
  });
}

sol_error* sol_model_tune(sol_model* model, double seconds, sol_progress progress, void* user, sol_tuned* tuned) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_tune");
    sol_rt::RequireSized(tuned, "sol_tuned");
    sol_rt::RequireFactory(*model->model, "sol_model_tune");
    sol_rt::EngineFactory& factory = *model->model->factory();
    if (!(seconds >= 0) || !factory.native()) {
      sol_rt::UsageFault("sol_model_tune: got " + std::to_string(seconds) + " seconds" + (factory.native() ? "" : " and no native operators") +
                         ", expected 0 or more on a runtime with native operators");
    }
    const auto report = [&](const char* what, uint64_t done, uint64_t total) {
      if (progress != nullptr && progress(user, what, done, total) != 0) {
        throw sol_rt::Error(SOL_ERROR_HOST, "sol_model_tune: the host's progress callback asked to stop");
      }
    };
    const sol_rt::TimedEngine timed(factory, model->model->config(), model->model->max_context());
    const sol_rt::Tuned found = sol_rt::TuneOperators(factory, *timed.engine, timed.length, timed.dense(), timed.cheapest(), {seconds, true}, report);
    constexpr double kNotTried = std::numeric_limits<double>::quiet_NaN();
    const double copies = sol_rt::TuneCopies(factory, *timed.engine, timed.length, seconds / 3).value_or(kNotTried);
    sol_rt::FillStruct(sol_tuned{tuned->size, found.steady ? 1 : 0, found.gain, copies, found.dense_ms}, tuned);
  });
}

sol_error* sol_model_set_costs(sol_model* model, const char* table) {
  return Guard([&] {
    sol_rt::RequireHandle(model, "sol_model_set_costs");
    sol_rt::Model& own = *model->model;
    own.SetCost(table == nullptr ? sol_rt::MakeBytesCost(own.config()) : sol_rt::MeasuredCostOf(own.config(), own.identity(), table));
  });
}

}  // extern "C"
