// Errors and structs of the C interface, and the library's version.
#include <new>
#include <string>

#include "api/border.h"

struct sol_error {
  sol_code code;
  std::string message;
};

namespace sol_rt {
namespace {

// There may be no memory to make these.
sol_error g_out_of_memory{SOL_ERROR_MEMORY, "out of memory; free some, or use a smaller context"};
sol_error g_unknown{SOL_ERROR_INTERNAL, "an exception of unknown type; report it"};

}  // namespace

sol_error* CurrentError() noexcept {
  try {
    try {
      throw;
    } catch (const Error& error) {
      return new sol_error{error.code(), error.what()};
    } catch (const std::bad_alloc&) {
      return &g_out_of_memory;
    } catch (const std::exception& error) {
      return new sol_error{SOL_ERROR_INTERNAL, Error(SOL_ERROR_INTERNAL, std::string("internal error: ") + error.what() + "; report it").what()};
    } catch (...) {
      return &g_unknown;
    }
  } catch (...) {
    return &g_out_of_memory;
  }
}

void RequireSized(const void* given, const char* what) {
  RequirePointer(given, what);
  uint32_t size = 0;
  std::memcpy(&size, given, sizeof(size));
  if (size < sizeof(size) || size > 4096) UsageFault(std::string(what) + ": got size " + std::to_string(size) + ", expected sizeof of the struct");
}

void CopyStruct(void* to, const void* from, size_t own, uint32_t size) {
  constexpr size_t kSize = sizeof(uint32_t);
  std::memcpy(static_cast<char*>(to) + kSize, static_cast<const char*>(from) + kSize, (size < own ? size : own) - kSize);
}

}  // namespace sol_rt

extern "C" {

uint32_t sol_interface_version(void) { return SOL_RT_INTERFACE_VERSION; }
const char* sol_version(void) { return SOL_RT_VERSION; }

sol_code sol_error_code(const sol_error* error) { return error == nullptr ? SOL_OK : error->code; }
const char* sol_error_message(const sol_error* error) { return error == nullptr ? "" : error->message.c_str(); }
void sol_error_release(sol_error* error) {
  if (error != &sol_rt::g_out_of_memory && error != &sol_rt::g_unknown) delete error;
}

}  // extern "C"
