#include "engine/ort/api.h"

#include <cstdio>
#include <cstdlib>

#include "base/error.h"
#include "base/file/file.h"
#include "base/text/printable.h"
#include "base/windows_api.h"

#ifndef _WIN32
#include <dlfcn.h>
#endif

namespace sol_rt {
namespace {

constexpr const char* kEntry = "OrtGetApiBase";
constexpr const char* kTelemetryOff = "ORT_DISABLE_TELEMETRY";
constexpr const char* kExpected = "ONNX Runtime 1.23 or newer";

#if defined(_WIN32)
const char* const kUsualNames[] = {"onnxruntime.dll"};
#elif defined(__APPLE__)
const char* const kUsualNames[] = {"libonnxruntime.dylib", "@rpath/libonnxruntime.dylib", "onnxruntime.framework/onnxruntime"};
#else
const char* const kUsualNames[] = {"libonnxruntime.so.1", "libonnxruntime.so"};
#endif

using GetApiBase = const OrtApiBase*(ORT_API_CALL*)();

#ifdef _WIN32
// The library stays loaded: its threads and the operators' registration outlive every handle.
GetApiBase Open(const std::string& name, std::string& reason) {
  const HMODULE library = LoadLibraryW(SystemPath(name).c_str());
  if (library == nullptr) {
    reason = "error " + std::to_string(GetLastError());
    return nullptr;
  }
  const auto entry = reinterpret_cast<GetApiBase>(reinterpret_cast<void*>(GetProcAddress(library, kEntry)));
  if (entry == nullptr) reason = std::string("no function ") + kEntry;
  return entry;
}

GetApiBase InProcess() {
  const HMODULE library = GetModuleHandleW(L"onnxruntime.dll");
  return library == nullptr ? nullptr : reinterpret_cast<GetApiBase>(reinterpret_cast<void*>(GetProcAddress(library, kEntry)));
}
#else
GetApiBase Open(const std::string& name, std::string& reason) {
  void* const library = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* const error = dlerror();
    reason = error == nullptr ? "it cannot be opened" : error;
    return nullptr;
  }
  const auto entry = reinterpret_cast<GetApiBase>(dlsym(library, kEntry));
  if (entry == nullptr) reason = std::string("no function ") + kEntry;
  return entry;
}

GetApiBase InProcess() { return reinterpret_cast<GetApiBase>(dlsym(RTLD_DEFAULT, kEntry)); }
#endif

// ONNX Runtime 1.32 and newer writes files and calls home from its first environment on. A value that the host has set stands.
void TurnOffTelemetry() {
#ifdef _WIN32
  if (std::getenv(kTelemetryOff) == nullptr) _putenv_s(kTelemetryOff, "1");
#else
  setenv(kTelemetryOff, "1", 0);
#endif
}

// In an error: longer than other values, as its end tells files apart.
std::string PathText(const std::string& path) { return Quoted(Cut(path, 400)); }

// The library of a runtime, as part of a sentence; nothing where the system does not say.
std::string In(const OrtApiBase* base) {
#ifndef _WIN32
  Dl_info found;
  if (dladdr(reinterpret_cast<void*>(base->GetVersionString), &found) != 0 && found.dli_fname != nullptr) return " in " + PathText(found.dli_fname);
#endif
  static_cast<void>(base);
  return std::string();
}

}  // namespace

const OrtApiBase* FindOrt(const void* base, const std::string& name) {
  TurnOffTelemetry();
  if (base != nullptr) return static_cast<const OrtApiBase*>(base);
  std::string reason;
  GetApiBase entry = nullptr;
  if (!name.empty()) {
    entry = Open(name, reason);
    if (entry == nullptr) {
      throw Error(SOL_ERROR_RUNTIME, "ONNX Runtime: got " + PathText(name) + ", which cannot be used (" + OneLine(reason) +
                                         "), expected a library with " + kExpected + "; install it, or give its path");
    }
  } else {
    entry = InProcess();
    for (const char* usual : kUsualNames) {
      if (entry == nullptr) entry = Open(usual, reason);
    }
    if (entry == nullptr) {
      throw Error(SOL_ERROR_RUNTIME, std::string("ONNX Runtime: got no library ") + kUsualNames[0] + " (" + OneLine(reason) +
                                         "), expected " + kExpected + "; install it, or give the path of its library");
    }
  }
  const OrtApiBase* const found = entry();
  if (found == nullptr) {
    throw Error(SOL_ERROR_RUNTIME, std::string("ONNX Runtime: got nothing from ") + kEntry + ", expected " + kExpected + "; install it");
  }
  return found;
}

const OrtApi* OrtFunctions(const OrtApiBase* base) {
  const char* const text = base->GetVersionString();
  const std::string version = text == nullptr ? "?" : text;
  const bool old = OlderThan(version, kOldestMinor);
  const OrtApi* const api = old ? nullptr : base->GetApi(kOrtApi);
  if (api == nullptr) {
    throw Error(SOL_ERROR_RUNTIME, "ONNX Runtime: got version " + Brief(version) + In(base) + (old ? "" : ", without version 21 of its C API") +
                                       ", expected 1.23 or newer; " + (old ? "upgrade it" : "use another release"));
  }
  return api;
}

bool OlderThan(const std::string& version, int minor) {
  int major = 0, found = 0;
  return std::sscanf(version.c_str(), "%d.%d", &major, &found) == 2 && major == 1 && found < minor;
}

std::string OneLine(const std::string& message) { return Short(message, 200); }

std::string TakeMessage(const OrtApi* api, OrtStatus* status) {
  if (status == nullptr) return std::string();
  std::string message = api->GetErrorMessage(status);
  api->ReleaseStatus(status);
  return message.empty() ? "unknown failure" : message;
}

void Check(const OrtApi* api, OrtStatus* status, const char* what) {
  if (status == nullptr) return;
  throw Error(SOL_ERROR_RUNTIME, std::string(what) + ": ONNX Runtime failed: " + OneLine(TakeMessage(api, status)));
}

}  // namespace sol_rt
