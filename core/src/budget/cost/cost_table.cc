// Reads and writes cost tables.
#include "budget/cost/cost_table.h"

#include <cmath>
#include <locale>
#include <nlohmann/json.hpp>
#include <sstream>

#include "base/error.h"
#include "base/text/json.h"
#include "base/text/number_text.h"

namespace sol_rt {
namespace {

using nlohmann::json;

constexpr const char* kFormat = "sol_rt.cost_table";
constexpr int kVersion = 1;
constexpr double kLongest = 1e9;  // milliseconds that a step may take; larger numbers would overflow in sums

[[noreturn]] void Unreadable(const std::string& problem) {
  throw Error(SOL_ERROR_BUNDLE, "cost table: not readable (" + problem.substr(0, 120) + "); run `sol-rt profile` again");
}

const json& Member(const json& object, const char* key) {
  const auto found = object.find(key);
  if (found == object.end()) Unreadable(std::string("no key ") + key);
  return *found;
}

std::string Text(const json& object, const char* key) {
  const json& value = Member(object, key);
  if (!value.is_string()) Unreadable(std::string(key) + " is no string");
  return value.get<std::string>();
}

double Milliseconds(const json& object, const char* key) {
  const json& value = Member(object, key);
  const double number = value.is_number() ? value.get<double>() : NAN;
  if (!(0 <= number && number <= kLongest)) Unreadable(std::string(key) + " is not a number from 0 to 1e+09");
  return number;
}

int Hundredths(const std::string& text) {
  std::istringstream stream(text);
  stream.imbue(std::locale::classic());
  double share = NAN;
  if (!(stream >> share) || stream.peek() != std::istringstream::traits_type::eof()) share = NAN;
  const double rounded = std::nearbyint(share * 100);
  if (!(1 <= rounded && rounded <= 100 && std::abs(rounded / 100 - share) < 1e-9)) {
    Unreadable("a KV density is not a share from 0.01 to 1 in hundredths, for example 0.3");
  }
  return static_cast<int>(rounded);
}

CostTable::Line ReadLine(const json& raw) {
  if (!raw.is_object() || raw.size() != 4) Unreadable("a line has other keys than error, fixed, per_page and per_token");
  CostTable::Line line;
  line.fixed = Milliseconds(raw, "fixed");
  line.per_token = Milliseconds(raw, "per_token");
  line.per_page = Milliseconds(raw, "per_page");
  line.error = Milliseconds(raw, "error");
  return line;
}

uint32_t Whole(const json& object, const char* key, uint32_t least, uint32_t most) {
  const json& value = Member(object, key);
  if (!value.is_number_integer() || value < least || value > most) {
    Unreadable(std::string(key) + " is not a whole number from " + std::to_string(least) + " to " + std::to_string(most));
  }
  return value.get<uint32_t>();
}

Tuning ReadTuning(const json& raw) {
  if (!raw.is_object() || raw.size() != 4 || !Member(raw, "copies").is_boolean()) {
    Unreadable("tuning has other keys than cache_level, members, row_bytes_ahead and copies");
  }
  return {Whole(raw, "cache_level", 1, 2), Whole(raw, "row_bytes_ahead", 0, kMostAhead), Whole(raw, "members", 0, kMostMembers),
          Member(raw, "copies") == true};
}

CostTable Read(const json& raw) {
  if (!raw.is_object()) Unreadable("no JSON object");
  const json &format = Member(raw, "format"), &version = Member(raw, "format_version");
  if (format != kFormat || version != kVersion) {
    Unreadable("format " + format.dump().substr(0, 40) + " version " + version.dump().substr(0, 40));
  }
  CostTable table;
  table.bundle = Text(raw, "bundle");
  table.device = Text(raw, "device");
  table.created = Text(raw, "created");
  table.policy_ms = Milliseconds(raw, "policy_ms");
  const json& lines = Member(raw, "lines");
  if (!lines.is_object()) Unreadable("lines is no JSON object");
  for (const auto& [key, row] : lines.items()) {
    if (!row.is_object()) Unreadable("a row of lines is no JSON object");
    for (const auto& [density, line] : row.items()) table.lines[key][Hundredths(density)] = ReadLine(line);
  }
  table.quick = Member(raw, "quick") == true;
  table.steady = Member(raw, "steady") == true;
  const json& tuning = Member(raw, "tuning");
  if (!tuning.is_null()) table.tuning = ReadTuning(tuning);
  return table;
}

}  // namespace

CostTable CostTable::FromJson(const std::string& text) {
  try {
    return Read(ParseShallow(text, true));
  } catch (const json::exception& error) {
    Unreadable(error.what());
  }
}

std::string CostTable::ToJson() const {
  nlohmann::ordered_json document = {{"format", kFormat},   {"format_version", kVersion}, {"bundle", bundle},
                                     {"device", device},    {"created", created},         {"policy_ms", policy_ms},
                                     {"lines", nlohmann::ordered_json::object()}, {"quick", quick},        {"steady", steady}};
  document["tuning"] = nullptr;
  if (tuning) {
    auto& written = document["tuning"];
    written["cache_level"] = tuning->cache_level;
    written["row_bytes_ahead"] = tuning->row_bytes_ahead;
    written["members"] = tuning->members;
    written["copies"] = tuning->copies;
  }
  for (const auto& [key, row] : lines) {
    auto& written = document["lines"][key] = nlohmann::ordered_json::object();
    for (const auto& [density, line] : row) {
      auto& cell = written[NumberText(density / 100.0)];
      cell["fixed"] = line.fixed;
      cell["per_token"] = line.per_token;
      cell["per_page"] = line.per_page;
      cell["error"] = line.error;
    }
  }
  return document.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace sol_rt
