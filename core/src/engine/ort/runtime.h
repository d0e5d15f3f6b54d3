// ONNX Runtime made ready: its environment, the threads that all sessions share, and the native operators.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/ort/api.h"

namespace sol_rt {

struct RuntimeOptions {
  const void* ort_api_base = nullptr;
  std::string ort_library;
  int32_t threads = 0;  // 0: the processors that this process may use
  bool native_operators = true;
  bool spin = true;
};

class Runtime {
 public:
  explicit Runtime(const RuntimeOptions& options);  // throws SOL_ERROR_RUNTIME, SOL_ERROR_USAGE

  const OrtApi* api() const { return api_; }
  const OrtEnv* env() const { return env_.get(); }
  const std::string& version() const { return version_; }
  int32_t threads() const { return threads_; }
  bool native() const { return native_; }  // whether native operators run. If not, the graphs' function bodies do

  std::string Device() const;  // processor, threads and libraries, for a cost table

  // Options of a session: quiet, on the shared threads, no memory kept between runs, native operators registered.
  Owned<OrtSessionOptions> SessionOptions() const;
  // A tensor of memory that belongs to the caller.
  Owned<OrtValue> Tensor(const void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) const;

 private:
  const OrtApiBase* base_;
  const OrtApi* api_;
  std::string version_;
  int32_t threads_;
  bool native_, spin_, shared_threads_ = true;
  Owned<OrtEnv> env_;
  Owned<OrtMemoryInfo> memory_;
};

}  // namespace sol_rt
