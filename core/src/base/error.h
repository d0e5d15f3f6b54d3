// The core's one exception. The C interface turns it into a `sol_error`.
#pragma once

#include <exception>
#include <string>
#include <utility>

#include "sol_rt.h"

namespace sol_rt {

class Error : public std::exception {
 public:
  // Line breaks in `message` become spaces and what goes beyond 1000 bytes is cut, because parts of it may come from a file.
  Error(sol_code code, std::string message);
  sol_code code() const { return code_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  sol_code code_;
  std::string message_;
};

// A text from a file as an error may show it: printable, at most 60 bytes, in quotation marks.
std::string Brief(const std::string& text);

// Throws SOL_ERROR_BUNDLE: "PATH: KEY: got GOT, expected EXPECTED; HINT". `key` may be empty.
[[noreturn]] void BundleFault(const std::string& path, const std::string& key, const std::string& got, const std::string& expected,
                              const std::string& hint = "export the bundle again");
[[noreturn]] void UsageFault(const std::string& message);

}  // namespace sol_rt
