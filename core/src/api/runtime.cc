// Runtimes of the C interface: ONNX Runtime as the host has it, and the settings of the operators.
#include <string>

#include "api/border.h"
#include "api/handles.h"
#include "base/cores.h"
#include "engine/ort/operator_tuning.h"
#include "engine/ort/ort_model.h"
#include "engine/ort/runtime.h"

using sol_rt::Guard;

namespace {

class OrtRuntime final : public sol_runtime {
 public:
  explicit OrtRuntime(const sol_rt::RuntimeOptions& options) : runtime_(std::make_shared<const sol_rt::Runtime>(options)), device_(runtime_->Device()) {}
  std::shared_ptr<sol_rt::EngineFactory> Open(std::shared_ptr<sol_rt::Bundle> bundle) const override {
    return std::make_shared<sol_rt::OrtModel>(runtime_, std::move(bundle));
  }
  sol_rt::StoredCosts FirstCosts(const std::string& folder, const sol_rt::Model& model, const sol_rt::Progress& progress) const override {
    return sol_rt::FirstCosts(folder, *model.factory(), model.bundle(), model.max_context(), progress);
  }
  const std::string& version() const override { return runtime_->version(); }
  const std::string& device() const override { return device_; }

 private:
  std::shared_ptr<const sol_rt::Runtime> runtime_;
  std::string device_;
};

sol_runtime_options Defaults() {
  sol_runtime_options options{};
  options.native_operators = 1;
  options.spin = 1;
  return options;
}

}  // namespace

extern "C" {

void sol_runtime_options_init(sol_runtime_options* options, uint32_t size) { sol_rt::InitStruct(Defaults(), options, size); }

sol_error* sol_runtime_create(const sol_runtime_options* options, sol_runtime** runtime) {
  return Guard([&] {
    sol_rt::RequirePointer(runtime, "sol_runtime_create: runtime");
    *runtime = nullptr;
    const sol_runtime_options given = sol_rt::ReadStruct(options, Defaults(), "sol_runtime_options");
    sol_rt::RuntimeOptions wanted;
    wanted.ort_api_base = given.ort_api_base;
    if (given.ort_library != nullptr) wanted.ort_library = given.ort_library;
    wanted.threads = given.threads;
    wanted.native_operators = given.native_operators != 0;
    wanted.spin = given.spin != 0;
    *runtime = new OrtRuntime(wanted);
  });
}

void sol_runtime_release(sol_runtime* runtime) { delete runtime; }

const char* sol_runtime_ort_version(const sol_runtime* runtime) { return runtime == nullptr ? "" : runtime->version().c_str(); }

const char* sol_runtime_device(const sol_runtime* runtime) { return runtime == nullptr ? "" : runtime->device().c_str(); }

int32_t sol_usable_cores(void) { return sol_rt::UsableCores("", sol_rt::AllowedCores()); }

sol_error* sol_tuning_get(sol_tuning* tuning) {
  return Guard([&] {
    sol_rt::RequireSized(tuning, "sol_tuning");
    const sol_rt::Tuning now = sol_rt::CurrentTuning();
    sol_rt::FillStruct(sol_tuning{tuning->size, now.cache_level, now.row_bytes_ahead, now.members, now.copies ? 1u : 0u}, tuning);
  });
}

sol_error* sol_tuning_set(const sol_tuning* tuning) {
  return Guard([&] {
    sol_rt::RequirePointer(tuning, "sol_tuning_set: tuning");
    const sol_tuning given = sol_rt::ReadStruct(tuning, sol_tuning{sizeof(sol_tuning), 2, 12288, 0, 0}, "sol_tuning");
    if (given.cache_level < 1 || given.cache_level > 2 || given.row_bytes_ahead > sol_rt::kMostAhead ||
        given.members > sol_rt::kMostMembers || given.copies > 2) {
      sol_rt::UsageFault("sol_tuning: got level " + std::to_string(given.cache_level) + ", " + std::to_string(given.row_bytes_ahead) + " bytes ahead, " +
                         std::to_string(given.members) + " members and copies " + std::to_string(given.copies) +
                         ", expected level 1 or 2, at most 1 MiB ahead, at most 1024 members, copies 0 to 2");
    }
    sol_rt::ApplyTuning({given.cache_level, given.row_bytes_ahead, given.members, given.copies == 1}, given.copies == 2);
  });
}

}  // extern "C"
