// JSON values as Python's errors show them, so that both runtimes say the same about the same file.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace sol_rt {

// `repr` of the value that Python's json module reads, on one line, at most 60 characters of it.
std::string BriefJson(const nlohmann::json& value);

}  // namespace sol_rt
