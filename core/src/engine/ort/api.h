// ONNX Runtime's C API, as the host has it.
#pragma once

#include <onnxruntime_c_api.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "sol_rt.h"

namespace sol_rt {

constexpr uint32_t kOrtApi = 21;      // of the C API: functions of newer versions are not used
constexpr int kOldestMinor = 23;      // ONNX Runtime 1.23 is the oldest that reads the graphs of a bundle (opset 23)
constexpr int kOldestForBodies = 27;  // before 1.27 a graph with two bodies of one operator is refused

// Finds ONNX Runtime: `base` if it is given, else in the library `name`, else in the process, else under the system's usual name. Its
// telemetry is off unless the environment variable ORT_DISABLE_TELEMETRY says otherwise. Throws SOL_ERROR_RUNTIME if there is none.
const OrtApiBase* FindOrt(const void* base, const std::string& name);

// Its functions. Throws SOL_ERROR_RUNTIME if it is too old, or if it no longer has this version of them.
const OrtApi* OrtFunctions(const OrtApiBase* base);

// True if a version of ONNX Runtime, as "1.26.0", is older than 1.`minor`. An unknown version is not.
bool OlderThan(const std::string& version, int minor);

// A message of ONNX Runtime on one line of at most 200 characters.
std::string OneLine(const std::string& message);

// The message of a failure, which is released; empty for success.
std::string TakeMessage(const OrtApi* api, OrtStatus* status);
// Throws SOL_ERROR_RUNTIME, with `what` before the message.
void Check(const OrtApi* api, OrtStatus* status, const char* what);

inline void Release(const OrtApi* api, OrtEnv* p) { api->ReleaseEnv(p); }
inline void Release(const OrtApi* api, OrtThreadingOptions* p) { api->ReleaseThreadingOptions(p); }
inline void Release(const OrtApi* api, OrtSessionOptions* p) { api->ReleaseSessionOptions(p); }
inline void Release(const OrtApi* api, OrtSession* p) { api->ReleaseSession(p); }
inline void Release(const OrtApi* api, OrtIoBinding* p) { api->ReleaseIoBinding(p); }
inline void Release(const OrtApi* api, OrtValue* p) { api->ReleaseValue(p); }
inline void Release(const OrtApi* api, OrtMemoryInfo* p) { api->ReleaseMemoryInfo(p); }
inline void Release(const OrtApi* api, OrtTypeInfo* p) { api->ReleaseTypeInfo(p); }

// An object of ONNX Runtime and what releases it.
template <class T>
class Owned {
 public:
  Owned() = default;
  Owned(const OrtApi* api, T* object) : api_(api), object_(object) {}
  Owned(Owned&& other) noexcept : api_(other.api_), object_(other.object_) { other.object_ = nullptr; }
  Owned& operator=(Owned&& other) noexcept {
    std::swap(api_, other.api_);
    std::swap(object_, other.object_);
    return *this;
  }
  ~Owned() { Reset(); }
  void Reset() {
    if (object_ != nullptr) Release(api_, object_);
    object_ = nullptr;
  }
  T* get() const { return object_; }
  explicit operator bool() const { return object_ != nullptr; }

 private:
  const OrtApi* api_ = nullptr;
  T* object_ = nullptr;
};

}  // namespace sol_rt
