#include "engine/model.h"

#include <algorithm>
#include <fstream>
#ifndef _WIN32
#include <unistd.h>
#endif

#include "base/error.h"
#include "engine/measure/tune_operators.h"
#include "engine/run/policy_session.h"

namespace sol_rt {
namespace {

// True if a tensor belongs to the 3-bit matrix that screens the LM head.
bool IsOfScreen(const std::string& name) { return name.rfind("embed.screen.", 0) == 0 || name.rfind("head.screen.", 0) == 0; }

// True if copies of the 4-bit matrices and of the LM head's screen would take a quarter of the free memory at most, as in sol_rt/engine/hardware/tuning.py.
// Half of the machine's memory counts as free if the system reports none, and at most half of a container's. On Windows none counts.
bool RoomForCopies(const Config& config) {
  int64_t bytes = 0, screen = 0, free = 0, most = 0;
  for (const auto& [name, entry] : config.tensors) {
    if (entry.dtype == "uint4") bytes += entry.bytes;
    if (entry.dtype == "uint8" && IsOfScreen(name)) screen += entry.bytes;
  }
  std::ifstream machine("/proc/meminfo"), container("/sys/fs/cgroup/memory.max");
  std::string word;
  while (machine >> word && word != "MemAvailable:") continue;
  if (machine >> free) {
    free *= 1024;
  } else {
#ifndef _WIN32
    free = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 2;
#endif
  }
  if (container >> most) free = std::min(free, most / 2);
  return (bytes * 19 / 16 + screen) * 4 <= free;
}

}  // namespace

Action PrefillAction(const Config& config, const std::string& key) {
  if (key.empty()) return config.dense;
  if (config.variants.count(key) == 0) {
    std::string has;
    for (const std::string& known : config.variant_order) has += (has.empty() ? "" : ", ") + known;
    UsageFault("--prefill: got " + Brief(key) + ", expected one of the bundle's variants: " + has);
  }
  return Action::Parse("k100-" + key);
}

Model::Model(std::shared_ptr<const Runtime> runtime, const std::string& folder, const ModelOptions& options)
    : runtime_(std::move(runtime)),
      bundle_(Bundle::Open(folder, options.verify, options.progress)),
      weights_(bundle_),
      sessions_(runtime_, bundle_, weights_),
      max_context_(config().model.max_context),
      prefill_(PrefillAction(config(), options.prefill)) {
  if (options.max_context < 0) {
    UsageFault("context size: got " + std::to_string(options.max_context) + ", expected 1 or more tokens, or 0 for the model's own");
  }
  if (options.max_context > 0) max_context_ = std::min<int64_t>(max_context_, options.max_context);
}

std::shared_ptr<Model> Model::Load(std::shared_ptr<const Runtime> runtime, const std::string& folder, const ModelOptions& options) {
  return std::shared_ptr<Model>(new Model(std::move(runtime), folder, options));
}

std::shared_ptr<const CostModel> Model::cost() const {
  const std::lock_guard<std::mutex> lock(cost_mutex_);
  return cost_;
}

void Model::SetCost(std::shared_ptr<const CostModel> cost) {
  const std::lock_guard<std::mutex> lock(cost_mutex_);
  cost_ = std::move(cost);
  std::optional<Tuning> tuning = native() ? cost_->TuningFor(runtime_->threads()) : std::nullopt;
  if (!tuning) return;
  tuning->copies = tuning->copies && RoomForCopies(config());
  ApplyTuning(*tuning);
}

std::unique_ptr<PolicyRunner> Model::MakePolicyRunner() {
  if (!config().policy) return nullptr;
  return std::make_unique<PolicySession>(*this);
}

}  // namespace sol_rt
