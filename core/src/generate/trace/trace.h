// Traces: a line of JSON for each step of a generation (sol_rt/generate/trace.py), so that the run can be drawn, compared and replayed.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/action.h"
#include "generate/trace/line_file.h"

namespace sol_rt {

constexpr const char* kTraceFormat = "sol_rt.trace";
constexpr int kTraceFormatVersion = 1;

struct TraceHeader {
  std::string bundle;         // name of the model
  std::string config_sha256;  // the bundle's identity
  std::vector<int32_t> prompt_tokens;
  std::string prompt;
  std::string schedule;
  std::optional<double> budget;  // none under targets on the axes
  std::string cost_model;
  nlohmann::ordered_json generation;  // settings on which the tokens depend
  std::string prefill;                // key of the variant that ran the prompt; empty for the dense one, which the file does not name
};

struct TraceRecord {
  int64_t step;  // 0 for the token of the prompt's run, which has no action
  int32_t token;
  std::string text;
  std::optional<Action> action;
  int64_t context;  // tokens in the cache before the step
  double cost, relative_cost, logprob, ms, achieved;
};

struct Trace {
  TraceHeader header;
  std::vector<TraceRecord> records;

  // Index of the first of `tokens` that differs; -1 if they agree up to the shorter one's end.
  int64_t FirstDifference(const std::vector<int32_t>& tokens) const;
};

// Writes line by line, so that an interrupted run leaves a trace of what it did. All throw SOL_ERROR_WRITE.
class TraceWriter {
 public:
  TraceWriter(const std::string& path, const TraceHeader& header);
  void Write(const TraceRecord& record);
  void Close();

 private:
  void Line(const nlohmann::ordered_json& content);
  [[noreturn]] void Refuse(const std::exception& error) const;

  const std::string path_;
  std::unique_ptr<LineFile> file_;
};

// Throws SOL_ERROR_USAGE for a file that is missing, no trace, damaged or cut off.
Trace ReadTrace(const std::string& path);
// The same of a file's content; errors name `path`.
Trace ParseTrace(std::string_view text, const std::string& path);

}  // namespace sol_rt
