#include "bundle/config/json_table.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/text/printable.h"

namespace sol_rt {
namespace {

constexpr const char* kConfigName = "sol_config.json";

// Characters that two strings have in common: the longest block, then those to its left and right.
size_t Common(std::string_view a, std::string_view b) {
  size_t best = 0, at_a = 0, at_b = 0;
  std::vector<size_t> above(b.size() + 1), row(b.size() + 1);
  for (size_t i = 0; i < a.size(); ++i) {
    for (size_t j = 0; j < b.size(); ++j) {
      row[j + 1] = a[i] == b[j] ? above[j] + 1 : 0;
      if (row[j + 1] > best) {
        best = row[j + 1];
        at_a = i + 1 - best;
        at_b = j + 1 - best;
      }
    }
    std::swap(above, row);
  }
  if (best == 0) return 0;
  return best + Common(a.substr(0, at_a), b.substr(0, at_b)) + Common(a.substr(at_a + best), b.substr(at_b + best));
}

}  // namespace

std::string Nearest(const std::string& name, const std::set<std::string>& candidates) {
  constexpr size_t kLongest = 100;
  std::string nearest;
  double best = 0.6;
  if (name.size() > kLongest) return nearest;
  for (const std::string& candidate : candidates) {
    const size_t total = candidate.size() + name.size();
    if (candidate.size() > kLongest || 2 * std::min(candidate.size(), name.size()) < 0.6 * total) continue;
    const double likeness = total == 0 ? 1.0 : 2.0 * Common(candidate, name) / total;
    if (likeness < best) continue;
    best = likeness;
    nearest = candidate;
  }
  return nearest;
}

bool IsIntegerWithin(const Json& value, int64_t low, int64_t high) {
  if (value.is_number_unsigned()) {
    const auto number = value.get<uint64_t>();
    return number <= static_cast<uint64_t>(INT64_MAX) && static_cast<int64_t>(number) >= low && static_cast<int64_t>(number) <= high;
  }
  if (!value.is_number_integer()) return false;
  const auto number = value.get<int64_t>();
  return number >= low && number <= high;
}

bool IsFileName(std::string_view name) {
  const auto is_plain = [](char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); };
  if (name.empty() || name.size() >= 200 || name == kConfigName || !is_plain(name[0])) return false;
  return std::all_of(name.begin(), name.end(), [&](char c) { return is_plain(c) || c == '.' || c == '_' || c == '+' || c == '-'; });
}

JsonTable::JsonTable(std::string path, std::string where, const Json& raw) : path_(std::move(path)), where_(std::move(where)), raw_(raw) {
  if (!raw_.is_object()) BundleFault(path_, where_.empty() ? "top level" : where_, Short(DumpJson(raw_)), "a JSON object");
}

bool JsonTable::Has(const std::string& name) const { return raw_.contains(name); }

std::string JsonTable::Key(const std::string& name) const { return where_.empty() ? Short(name) : where_ + "." + Short(name); }

void JsonTable::Fail(const std::string& name, const std::string& got, const std::string& expected, const std::string& hint) const {
  BundleFault(path_, Key(name), got, expected, hint);
}

const Json& JsonTable::Value(const std::string& name) {
  asked_.insert(name);
  const auto found = raw_.find(name);
  if (found == raw_.end()) {
    std::set<std::string> others;
    for (auto item = raw_.begin(); item != raw_.end(); ++item) {
      if (asked_.count(item.key()) == 0) others.insert(item.key());
    }
    const std::string near = Nearest(name, others);
    Fail(name, near.empty() ? "no such key" : "no such key but " + Quoted(near), "a value");
  }
  return *found;
}

const Json& JsonTable::Typed(const std::string& name, const std::function<bool(const Json&)>& test, const std::string& expected) {
  const Json& value = Value(name);
  if (!test(value)) Fail(name, Short(DumpJson(value)), expected);
  return value;
}

std::string JsonTable::Text(const std::string& name) {
  return Typed(name, [](const Json& value) { return value.is_string(); }, "a string").get<std::string>();
}

std::string JsonTable::Choice(const std::string& name, const std::vector<std::string>& allowed) {
  std::vector<std::string> sorted = allowed;
  std::sort(sorted.begin(), sorted.end());
  std::string expected;
  for (const std::string& item : sorted) expected += (expected.empty() ? "" : " or ") + item;
  const auto test = [&](const Json& value) {
    return value.is_string() && std::find(allowed.begin(), allowed.end(), value.get_ref<const std::string&>()) != allowed.end();
  };
  return Typed(name, test, expected).get<std::string>();
}

int64_t JsonTable::Integer(const std::string& name, int64_t low, int64_t high) {
  const auto test = [&](const Json& value) { return IsIntegerWithin(value, low, high); };
  return Typed(name, test, "an integer from " + std::to_string(low) + " to " + std::to_string(high)).get<int64_t>();
}

std::vector<int64_t> JsonTable::Integers(const std::string& name, int64_t low, int64_t high) {
  const auto test = [&](const Json& value) {
    return value.is_array() && std::all_of(value.begin(), value.end(), [&](const Json& item) { return IsIntegerWithin(item, low, high); });
  };
  const Json& found = Typed(name, test, "a list of integers from " + std::to_string(low) + " to " + std::to_string(high));
  std::vector<int64_t> values;
  for (const Json& item : found) values.push_back(item.get<int64_t>());
  return values;
}

std::vector<std::string> JsonTable::Texts(const std::string& name) {
  const auto test = [](const Json& value) {
    return value.is_array() && std::all_of(value.begin(), value.end(), [](const Json& item) { return item.is_string(); });
  };
  std::vector<std::string> values;
  for (const Json& item : Typed(name, test, "a list of strings")) values.push_back(item.get<std::string>());
  return values;
}

std::string JsonTable::FileName(const std::string& name) {
  const auto test = [](const Json& value) { return value.is_string() && IsFileName(value.get_ref<const std::string&>()); };
  return Typed(name, test, "a plain file name inside the bundle").get<std::string>();
}

JsonTable JsonTable::Table(const std::string& name) { return JsonTable(path_, Key(name), Value(name)); }

void JsonTable::Done() {
  for (auto item = raw_.begin(); item != raw_.end(); ++item) {
    if (asked_.count(item.key()) > 0) continue;
    const std::string near = Nearest(item.key(), asked_);
    std::string known;
    for (const std::string& name : asked_) known += (known.empty() ? "" : ", ") + name;
    Fail(item.key(), "an unknown key", near.empty() ? "one of " + known : Quoted(near),
         "correct the key, or use a newer sol_rt if a newer one wrote the bundle");
  }
}

}  // namespace sol_rt
