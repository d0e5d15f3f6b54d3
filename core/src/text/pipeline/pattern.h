// The `pattern` of a step in tokenizer.json: a text or a regular expression.
#pragma once

#include <memory>

#include "text/model/tokenizer_file.h"
#include "text/unicode/regex.h"

namespace sol_rt {

inline std::shared_ptr<const Regex> ReadPattern(const Settings& step) {
  const Settings pattern = step.At("pattern");
  if (pattern.Has("String")) return std::make_shared<const Regex>(pattern.Text("String"), Regex::Syntax::kLiteral);
  return std::make_shared<const Regex>(pattern.Text("Regex"), Regex::Syntax::kOniguruma);
}

}  // namespace sol_rt
