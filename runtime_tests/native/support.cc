// Functions that builds with a sanitizer refer to and no library has.

#include <hwy/base.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

namespace hwy {

// Fails one of Highway's own checks, which only these builds have.
void Abort(const char* file, int line, const char* format, ...) {
  std::fprintf(stderr, "Highway: %s:%d: ", file, line);
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
  std::abort();
}

}  // namespace hwy

// At every edge of the code, for the fuzzer, which has one of its own.
extern "C" __attribute__((weak)) void __sanitizer_cov_trace_pc() {}
