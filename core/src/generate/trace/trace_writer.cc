#include <stdexcept>
#include <system_error>

#include "base/error.h"
#include "base/file/file.h"
#include "generate/trace/trace.h"

namespace sol_rt {

using nlohmann::ordered_json;

TraceWriter::TraceWriter(const std::string& path, const TraceHeader& header) : path_(path) {
  try {
    file_ = std::make_unique<LineFile>(path);
  } catch (const std::runtime_error& error) {
    Refuse(error);
  }
  ordered_json line;
  line["format"] = kTraceFormat;
  line["format_version"] = kTraceFormatVersion;
  line["bundle"] = header.bundle;
  line["config_sha256"] = header.config_sha256;
  line["prompt_tokens"] = header.prompt_tokens;
  line["prompt"] = header.prompt;
  line["schedule"] = header.schedule;
  line["budget"] = header.budget ? ordered_json(*header.budget) : ordered_json();
  line["cost_model"] = header.cost_model;
  line["generation"] = header.generation;
  if (!header.prefill.empty()) line["prefill"] = header.prefill;
  Line(line);
}

void TraceWriter::Write(const TraceRecord& record) {
  ordered_json line;
  line["step"] = record.step;
  line["token"] = record.token;
  line["text"] = record.text;
  line["action"] = record.action ? ordered_json(record.action->Tag()) : ordered_json();
  line["context"] = record.context;
  line["cost"] = record.cost;
  line["relative_cost"] = record.relative_cost;
  line["logprob"] = record.logprob;
  line["ms"] = record.ms;
  line["achieved"] = record.achieved;
  Line(line);
}

void TraceWriter::Line(const ordered_json& content) {
  const std::string line = content.dump(-1, ' ', false, ordered_json::error_handler_t::replace) + "\n";
  try {
    file_->Write(line);
  } catch (const std::system_error& error) {
    Refuse(error);
  }
}

void TraceWriter::Close() {
  try {
    file_->Close();
  } catch (const std::system_error& error) {
    Refuse(error);
  }
}

void TraceWriter::Refuse(const std::exception& error) const {
  throw Error(SOL_ERROR_WRITE, "trace " + path_ + ": " + Reason(error) + "; choose another file");
}

}  // namespace sol_rt
