// Reads `sol_config.json` strictly: unknown, missing and impossible values are errors. bundle.h checks the bundle's other files.
#pragma once

#include <string>
#include <string_view>

#include "bundle/config/config.h"

namespace sol_rt {

constexpr const char* kConfigFile = "sol_config.json";

// `text` is the file's content; errors name `path`. Throws SOL_ERROR_BUNDLE, in one line, if it is not a valid config.
Config ReadConfig(std::string_view text, const std::string& path);

}  // namespace sol_rt
