// JSON from files that may be damaged or hostile: depth and sizes are bounded, keys keep their order.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace sol_rt {

using Json = nlohmann::ordered_json;

constexpr size_t kJsonDepth = 100;  // lists and objects inside each other
constexpr size_t kJsonKeys = 1 << 15;  // of one object: looking for a key takes time in proportion

// Throws SOL_ERROR_BUNDLE, which names `path`, for text that is not UTF-8 JSON or goes beyond the bounds.
Json ParseJson(std::string_view text, const std::string& path, size_t most_keys = kJsonKeys);

// Parses a text as nlohmann::json::parse does; discarded for one that nests deeper than kJsonDepth, whose copies and texts would exhaust the stack. One that
// is no JSON is discarded, too, or nlohmann::json::parse_error if `throws`.
nlohmann::json ParseShallow(std::string_view text, bool throws);

// As Python's json.dumps writes it, but no longer than an error shows.
std::string DumpJson(const Json& value);

}  // namespace sol_rt
