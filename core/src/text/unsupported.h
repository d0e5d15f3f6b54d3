// Error for a part of a tokenizer that the core does not have. `Tokenizer::FromJson` adds the file's path and throws it as an Error.
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace sol_rt {

class Unsupported : public std::exception {
 public:
  // "got `got`, expected `expected`".
  Unsupported(std::string got, std::string expected) : text_("got " + std::move(got) + ", expected " + std::move(expected)) {}
  const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

}  // namespace sol_rt
