#include "generate/trace/trace.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>

#include "base/error.h"
#include "base/file/file.h"
#include "base/text/json.h"
#include "base/text/printable.h"
#include "generate/settings/json_repr.h"
#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

using nlohmann::json;

constexpr int kLongestName = 200;
constexpr const char* kGiveAFile = "; give a file that `--trace` wrote";

enum class Kind { kText, kTextOrNull, kList, kObject, kWhole, kNumber, kNumberOrNull };

struct Key {
  const char* name;
  Kind kind;
};

constexpr Key kHeaderKeys[] = {
    {"bundle", Kind::kText},   {"config_sha256", Kind::kText},  {"prompt_tokens", Kind::kList}, {"prompt", Kind::kText},
    {"schedule", Kind::kText}, {"budget", Kind::kNumberOrNull}, {"cost_model", Kind::kText},    {"generation", Kind::kObject},
};
constexpr Key kRecordKeys[] = {
    {"step", Kind::kWhole},    {"token", Kind::kWhole}, {"text", Kind::kText},            {"action", Kind::kTextOrNull},
    {"context", Kind::kWhole}, {"cost", Kind::kNumber}, {"relative_cost", Kind::kNumber}, {"logprob", Kind::kNumber},
    {"ms", Kind::kNumber},     {"achieved", Kind::kNumber},
};

bool Fits(const json& value, Kind kind) {
  switch (kind) {
    case Kind::kText:
      return value.is_string();
    case Kind::kTextOrNull:
      return value.is_string() || value.is_null();
    case Kind::kList:
      return value.is_array();
    case Kind::kObject:
      return value.is_object();
    case Kind::kWhole:
      return value.is_number_integer();
    case Kind::kNumber:
      return value.is_number() && std::isfinite(value.get<double>());
    case Kind::kNumberOrNull:
      return value.is_null() || Fits(value, Kind::kNumber);
  }
  return false;
}

// Describes a wrong key or type of a line; empty if all are right.
std::string Problem(const json& raw, const Key* begin, const Key* end) {
  for (const Key* at = begin; at != end; ++at) {
    const Key& key = *at;
    const auto found = raw.find(key.name);
    if (found == raw.end()) return "no key '" + std::string(key.name) + "'";
    if (!Fits(*found, key.kind)) return std::string(key.name) + ": got " + BriefJson(*found) + ", which has the wrong type";
  }
  for (auto item = raw.begin(); item != raw.end(); ++item) {
    if (std::none_of(begin, end, [&](const Key& key) { return item.key() == key.name; })) return "unknown key " + BriefJson(item.key());
  }
  return "";
}

bool IsToken(const json& value) {
  return value.is_number_integer() && value >= 0 && value <= std::numeric_limits<int32_t>::max();
}

json Parsed(const std::string& line) {
  json value = ParseShallow(line, false);
  if (!value.is_object()) return json::object();
  return value;
}

// True if a text can be the name of a schedule or of costs: it may be shown.
bool IsName(const std::string& text) { return !text.empty() && Cut(text, kLongestName) == text && Printable(text) == text; }

[[noreturn]] void Fault(const std::string& path, const std::string& what) { UsageFault("trace " + path + ": " + what); }

TraceHeader ReadHeader(const std::string& path, const std::string& line) {
  json raw = Parsed(line);
  if (raw.value("format", json()) != kTraceFormat) Fault(path, std::string("line 1 is not a trace's header") + kGiveAFile);
  const json version = raw.value("format_version", json());
  if (version != kTraceFormatVersion) {
    Fault(path, "format version " + BriefJson(version) + ", expected " + std::to_string(kTraceFormatVersion) + "; record the run again");
  }
  raw.erase("format");
  raw.erase("format_version");
  const json prefill = raw.value("prefill", json(""));
  raw.erase("prefill");
  std::string problem = Problem(raw, std::begin(kHeaderKeys), std::end(kHeaderKeys));
  if (problem.empty() && !Fits(prefill, Kind::kText)) problem = "prefill: got " + BriefJson(prefill) + ", which has the wrong type";
  if (problem.empty()) {
    bool tokens = !raw["prompt_tokens"].empty();
    for (const json& token : raw["prompt_tokens"]) tokens = tokens && IsToken(token);
    if (!tokens) problem = "prompt_tokens are not token ids";
  }
  for (const char* const key : {"schedule", "cost_model"}) {
    if (problem.empty() && !IsName(raw[key].get_ref<const std::string&>())) {
      problem = std::string(key) + ": got " + BriefJson(raw[key]) + ", expected a name of 1 to " + std::to_string(kLongestName) +
                " printable characters";
    }
  }
  if (!problem.empty()) Fault(path, "line 1: " + problem + "; record the run again");
  TraceHeader header;
  header.bundle = raw["bundle"];
  header.config_sha256 = raw["config_sha256"];
  header.prompt_tokens = raw["prompt_tokens"].get<std::vector<int32_t>>();
  header.prompt = raw["prompt"];
  header.schedule = raw["schedule"];
  if (!raw["budget"].is_null()) header.budget = raw["budget"].get<double>();
  header.cost_model = raw["cost_model"];
  header.generation = raw["generation"];
  header.prefill = prefill;
  return header;
}

TraceRecord ReadRecord(const std::string& path, size_t number, const std::string& line, bool cut, int64_t step) {
  const json raw = Parsed(line);
  const std::string where = "line " + std::to_string(number);
  if (raw.empty()) {
    Fault(path, where + (cut ? " is cut off; remove the line to use the rest" : " is not a record; record the run again"));
  }
  TraceRecord record{};
  std::string problem = Problem(raw, std::begin(kRecordKeys), std::end(kRecordKeys));
  if (problem.empty() && raw["step"] != step) problem = "step " + BriefJson(raw["step"]) + ", expected " + std::to_string(step);
  if (problem.empty() && !(IsToken(raw["token"]) && IsToken(raw["context"]))) {
    problem = "token " + BriefJson(raw["token"]) + ", context " + BriefJson(raw["context"]) + ", expected numbers from 0";
  }
  if (problem.empty() && raw["action"].is_null() != (step == 0)) {
    problem = std::string(step ? "no" : "an") + " action at step " + std::to_string(step) + ", expected one at every step but 0";
  }
  if (problem.empty() && !raw["action"].is_null()) {
    try {
      record.action = Action::Parse(raw["action"].get_ref<const std::string&>());
    } catch (const Error& error) {
      problem = error.what();
    }
  }
  if (!problem.empty()) Fault(path, where + ": " + problem + "; record the run again");
  record.step = step;
  record.token = raw["token"];
  record.text = raw["text"];
  record.context = raw["context"];
  record.cost = raw["cost"];
  record.relative_cost = raw["relative_cost"];
  record.logprob = raw["logprob"];
  record.ms = raw["ms"];
  record.achieved = raw["achieved"];
  return record;
}

}  // namespace

int64_t Trace::FirstDifference(const std::vector<int32_t>& tokens) const {
  for (size_t i = 0; i < records.size() && i < tokens.size(); ++i) {
    if (records[i].token != tokens[i]) return static_cast<int64_t>(i);
  }
  return -1;
}

Trace ReadTrace(const std::string& path) {
  std::string text;
  try {
    OpenFile file(path);
    char part[1 << 16];
    while (const size_t size = file.Read(part, sizeof part)) text.append(part, size);
  } catch (const std::system_error& error) {
    Fault(path, Reason(error) + kGiveAFile);
  }
  return ParseTrace(text, path);
}

Trace ParseTrace(std::string_view text, const std::string& path) {
  if (!IsValidUtf8(text)) Fault(path, std::string("not UTF-8 text") + kGiveAFile);
  std::vector<std::string> lines;
  for (size_t start = 0;;) {
    const size_t end = text.find('\n', start);
    lines.emplace_back(text.substr(start, end == std::string_view::npos ? end : end - start));
    if (end == std::string_view::npos) break;
    start = end + 1;
  }
  Trace trace{ReadHeader(path, lines[0]), {}};
  for (size_t i = 1; i < lines.size(); ++i) {
    const bool last = i + 1 == lines.size();
    if (last && lines[i].empty()) break;
    trace.records.push_back(ReadRecord(path, i + 1, lines[i], last, static_cast<int64_t>(trace.records.size())));
  }
  return trace;
}

}  // namespace sol_rt
