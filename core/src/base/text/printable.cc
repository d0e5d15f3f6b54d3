#include "base/text/printable.h"

#include <utf8proc.h>

#include <cstdint>
#include <cstdio>

namespace sol_rt {
namespace {

struct Character {
  utf8proc_int32_t code;  // -1: not UTF-8
  size_t bytes;
};

Character Next(std::string_view text, size_t at) {
  utf8proc_int32_t code = -1;
  const auto* bytes = reinterpret_cast<const utf8proc_uint8_t*>(text.data()) + at;
  const utf8proc_ssize_t read = utf8proc_iterate(bytes, static_cast<utf8proc_ssize_t>(text.size() - at), &code);
  return read > 0 ? Character{code, static_cast<size_t>(read)} : Character{-1, 1};
}

bool IsPrintable(utf8proc_int32_t code) {
  if (code == ' ') return true;
  switch (utf8proc_category(code)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP:
    case UTF8PROC_CATEGORY_ZS:
      return false;
    default:
      return true;
  }
}

std::string Escape(utf8proc_int32_t code) {
  if (code == '\r') return "\\r";
  if (code == '\t') return "\\t";
  if (code == '\n') return "\\n";
  char text[16];
  std::snprintf(text, sizeof(text), code < 0x100 ? "\\x%02x" : code < 0x10000 ? "\\u%04x" : "\\U%08x", static_cast<unsigned>(code));
  return text;
}

bool IsSpace(utf8proc_int32_t code) {
  return code == ' ' || (code >= 0x09 && code <= 0x0d) || (code >= 0x1c && code <= 0x1f) || code == 0x85 || code == 0xa0 || code == 0x1680 ||
         (code >= 0x2000 && code <= 0x200a) || code == 0x2028 || code == 0x2029 || code == 0x202f || code == 0x205f || code == 0x3000;
}

constexpr const char* kReplacement = "\xef\xbf\xbd";

// A text within `quote`, or with 0 for none, where line breaks become spaces.
std::string Escaped(std::string_view text, char quote) {
  std::string made;
  for (size_t at = 0; at < text.size();) {
    const Character next = Next(text, at);
    if (next.code < 0) {
      made += kReplacement;
    } else if (quote == 0 && next.code == '\n') {
      made += ' ';
    } else if (quote != 0 && (next.code == quote || next.code == '\\')) {
      made += {'\\', static_cast<char>(next.code)};
    } else if (IsPrintable(next.code)) {
      made += text.substr(at, next.bytes);
    } else {
      made += Escape(next.code);
    }
    at += next.bytes;
  }
  return made;
}

}  // namespace

std::string Printable(std::string_view text) { return Escaped(text, 0); }

std::string Cut(std::string_view text, size_t limit) {
  size_t at = 0, before_last = 0;
  for (size_t count = 0; at < text.size(); ++count) {
    if (count == limit - 1) before_last = at;
    if (count == limit) return std::string(text.substr(0, before_last)) + "…";
    at += Next(text, at).bytes;
  }
  return std::string(text);
}

std::string Short(std::string_view text, size_t limit) {
  std::string made;
  bool space = false;
  for (size_t at = 0; at < text.size();) {
    const Character next = Next(text, at);
    if (next.code >= 0 && IsSpace(next.code)) {
      space = true;
    } else {
      if (space && !made.empty()) made += ' ';
      space = false;
      made += text.substr(at, next.bytes);
    }
    at += next.bytes;
  }
  return Cut(made, limit);
}

std::string Quoted(std::string_view text) {
  const char quote = text.find('\'') != std::string_view::npos && text.find('"') == std::string_view::npos ? '"' : '\'';
  return quote + Escaped(text, quote) + quote;
}

bool IsUtf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Character next = Next(text, at);
    if (next.code < 0) return false;
    at += next.bytes;
  }
  return true;
}

}  // namespace sol_rt
