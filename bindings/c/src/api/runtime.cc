// Runtimes of the C interface: ONNX Runtime as the host has it.
#include "api/border.h"
#include "api/handles.h"

using sol_rt::Guard;

namespace {

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
    *runtime = new sol_runtime{std::make_shared<const sol_rt::Runtime>(wanted)};
  });
}

void sol_runtime_release(sol_runtime* runtime) { delete runtime; }

const char* sol_runtime_ort_version(const sol_runtime* runtime) { return runtime == nullptr ? "" : runtime->runtime->version().c_str(); }

}  // extern "C"
