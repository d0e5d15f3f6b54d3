#include "generate/settings/json_repr.h"

#include <cmath>
#include <cstdio>

namespace sol_rt {
namespace {

constexpr size_t kLongest = 60;  // characters

// Bytes of the first `count` characters of UTF-8 text.
size_t BytesOf(const std::string& text, size_t count) {
  size_t at = 0;
  for (; at < text.size(); ++at) {
    const bool starts = (static_cast<unsigned char>(text[at]) & 0xc0) != 0x80;
    if (starts && count-- == 0) break;
  }
  return at;
}

std::string Quoted(const std::string& text) {
  const char quote = text.find('\'') != std::string::npos && text.find('"') == std::string::npos ? '"' : '\'';
  std::string written(1, quote);
  for (const char c : text) {
    const unsigned char code = static_cast<unsigned char>(c);
    if (c == '\n') {
      written += "\\n";
    } else if (c == '\r') {
      written += "\\r";
    } else if (c == '\t') {
      written += "\\t";
    } else if (code < 0x20 || code == 0x7f) {
      char escape[8];
      std::snprintf(escape, sizeof escape, "\\x%02x", code);
      written += escape;
    } else {
      if (c == '\\' || c == quote) written += '\\';
      written += c;
    }
  }
  return written + quote;
}

std::string Repr(const nlohmann::json& value, size_t most) {
  if (value.is_null()) return "None";
  if (value.is_boolean()) return value.get<bool>() ? "True" : "False";
  if (value.is_string()) {
    const std::string& text = value.get_ref<const std::string&>();
    return Quoted(text.substr(0, BytesOf(text, most)));
  }
  if (value.is_number_float()) {
    const double number = value.get<double>();
    if (std::isnan(number)) return "nan";
    if (std::isinf(number)) return number < 0 ? "-inf" : "inf";
  }
  if (!value.is_structured()) return value.dump();
  std::string written = value.is_array() ? "[" : "{";
  const char* separator = "";
  for (auto item = value.begin(); item != value.end() && written.size() <= 8 * kLongest; ++item) {
    written += separator;
    if (value.is_object()) written += Quoted(item.key()) + ": ";
    written += Repr(*item, std::string::npos);
    separator = ", ";
  }
  return written + (value.is_array() ? "]" : "}");
}

}  // namespace

std::string BriefJson(const nlohmann::json& value) {
  const std::string text = Repr(value, kLongest);
  std::string line;
  for (const char c : text) {  // runs of spaces become one
    if (c != ' ' || line.empty() || line.back() != ' ') line += c;
  }
  const size_t whole = BytesOf(line, kLongest);
  return whole == line.size() ? line : line.substr(0, BytesOf(line, kLongest - 1)) + "…";
}

}  // namespace sol_rt
