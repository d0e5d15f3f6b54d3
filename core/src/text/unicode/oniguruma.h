// Translates a regular expression of Oniguruma's Ruby syntax to PCRE2's.
#pragma once

#include <string>
#include <string_view>

namespace sol_rt {

// Throws Unsupported for what PCRE2 does not run with the same meaning.
std::string FromOniguruma(std::string_view pattern);

}  // namespace sol_rt
