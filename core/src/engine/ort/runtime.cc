#include "engine/ort/runtime.h"

#include <algorithm>
#include <fstream>
#include <mutex>

#include "base/cores.h"
#include "base/error.h"

#ifdef SOL_RT_OPERATORS
extern "C" OrtStatus* ORT_API_CALL SolRtRegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);
extern "C" const char* SolRtTarget();
#endif

namespace sol_rt {
namespace {

constexpr OrtLoggingLevel kQuiet = ORT_LOGGING_LEVEL_FATAL;

// A model that passes a number on: opset 13, one Identity of a float [1].
constexpr uint8_t kProbe[] = {0x08, 0x07, 0x3a, 0x37, 0x0a, 0x10, 0x0a, 0x01, 'x',  0x12, 0x01, 'y',  0x22, 0x08, 'I',  'd',  'e',
                              'n',  't',  'i',  't',  'y',  0x12, 0x01, 'g',  'Z',  0x0f, 0x0a, 0x01, 'x',  0x12, 0x0a, 0x0a, 0x08,
                              0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 'b',  0x0f, 0x0a, 0x01, 'y',  0x12, 0x0a, 0x0a, 0x08,
                              0x08, 0x01, 0x12, 0x04, 0x0a, 0x02, 0x08, 0x01, 'B',  0x04, 0x0a, 0x00, 0x10, 0x0d};

// The operators call one ONNX Runtime for the life of the process.
void RequireOneRuntime(const OrtApi* api) {
  static std::mutex mutex;
  static const OrtApi* first = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (first == nullptr) first = api;
  if (first != api) {
    throw Error(SOL_ERROR_RUNTIME,
                "ONNX Runtime: got a second one in this process, expected the one that the native operators are registered with; use that one, or go "
                "without native operators");
  }
}

std::string Processor() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.compare(0, 10, "model name") == 0 || line.compare(0, 8, "Hardware") == 0) {
      const size_t at = line.find(':');
      const size_t start = at == std::string::npos ? at : line.find_first_not_of(' ', at + 1);
      if (start != std::string::npos) return line.substr(start);
    }
  }
  return "this processor";
}

}  // namespace

Runtime::Runtime(const RuntimeOptions& options)
    : base_(nullptr), api_(nullptr), threads_(options.threads), native_(options.native_operators), spin_(options.spin) {
  if (threads_ < 0 || threads_ > 1024) {
    UsageFault("threads: got " + std::to_string(threads_) + ", expected a whole number from 1 to 1024, or 0 for as many as help");
  }
  if (threads_ == 0) threads_ = UsableCores("", AllowedCores());
  base_ = FindOrt(options.ort_api_base, options.ort_library);
  api_ = OrtFunctions(base_);
  version_ = base_->GetVersionString();
#ifndef SOL_RT_OPERATORS
  native_ = false;
#endif
  if (native_) RequireOneRuntime(api_);

  OrtThreadingOptions* threading = nullptr;
  Check(api_, api_->CreateThreadingOptions(&threading), "threads");
  const Owned<OrtThreadingOptions> owned_threading(api_, threading);
  Check(api_, api_->SetGlobalIntraOpNumThreads(threading, threads_), "threads");
  Check(api_, api_->SetGlobalInterOpNumThreads(threading, 1), "threads");
  Check(api_, api_->SetGlobalSpinControl(threading, spin_ ? 1 : 0), "threads");
  OrtEnv* env = nullptr;
  Check(api_, api_->CreateEnvWithGlobalThreadPools(kQuiet, "sol_rt", threading, &env), "environment");
  env_ = Owned<OrtEnv>(api_, env);
  OrtMemoryInfo* memory = nullptr;
  Check(api_, api_->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory), "memory");
  memory_ = Owned<OrtMemoryInfo>(api_, memory);

  // A process has one environment. Where the host made it, and without shared threads, each session gets threads of its own.
  for (int attempt = 0; attempt < 2; ++attempt) {
    OrtSession* session = nullptr;
    const Owned<OrtSessionOptions> probe = SessionOptions();
    OrtStatus* const status = api_->CreateSessionFromArray(env, kProbe, sizeof(kProbe), probe.get(), &session);
    const Owned<OrtSession> owned_session(api_, session);
    if (status == nullptr) break;
    if (attempt == 1) Check(api_, status, "a session");
    TakeMessage(api_, status);
    shared_threads_ = false;
  }
}

std::string Runtime::Device() const {
  std::string kernels = "ONNX Runtime kernels";
#ifdef SOL_RT_OPERATORS
  if (native_) kernels = std::string("kernels of the native core " SOL_RT_VERSION " (") + SolRtTarget() + ")";
#endif
  return Processor() + ", " + std::to_string(threads_) + " threads, cpu, onnxruntime " + version_ + ", " + kernels;
}

Owned<OrtSessionOptions> Runtime::SessionOptions() const {
  OrtSessionOptions* options = nullptr;
  Check(api_, api_->CreateSessionOptions(&options), "session options");
  Owned<OrtSessionOptions> owned(api_, options);
  Check(api_, api_->SetSessionLogSeverityLevel(options, kQuiet), "session options");
  Check(api_, api_->DisableMemPattern(options), "session options");
  Check(api_, api_->DisableCpuMemArena(options), "session options");
  if (shared_threads_) {
    Check(api_, api_->DisablePerSessionThreads(options), "session options");
  } else {
    Check(api_, api_->SetIntraOpNumThreads(options, threads_), "session options");
    Check(api_, api_->AddSessionConfigEntry(options, "session.intra_op.allow_spinning", spin_ ? "1" : "0"), "session options");
  }
#ifdef SOL_RT_OPERATORS
  if (native_) Check(api_, SolRtRegisterCustomOps(options, base_), "native operators");
#endif
  if (!native_) {
    Check(api_, api_->AddSessionConfigEntry(options, "session.qdq_matmulnbits_accuracy_level", "4"), "session options");
    Check(api_, api_->AddSessionConfigEntry(options, "session.enable_dq_matmulnbits_fusion", "1"), "session options");
  }
  return owned;
}

Owned<OrtValue> Runtime::Tensor(const void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) const {
  OrtValue* value = nullptr;
  static int64_t nothing = 0;  // a tensor without elements has an address, too
  Check(api_,
        api_->CreateTensorWithDataAsOrtValue(memory_.get(), bytes == 0 ? static_cast<void*>(&nothing) : const_cast<void*>(data), bytes, shape.data(),
                                             shape.size(), type, &value),
        "a tensor");
  return Owned<OrtValue>(api_, value);
}

}  // namespace sol_rt
