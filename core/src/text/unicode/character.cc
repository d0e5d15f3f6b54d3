#include "text/unicode/character.h"

#include <utf8proc.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <new>

#include "text/unicode/exceptions.h"
#include "text/unicode/regex.h"
#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

template <size_t N>
bool In(const CharacterRange (&ranges)[N], uint32_t character) {
  const auto after = std::upper_bound(std::begin(ranges), std::end(ranges), character,
                                      [](uint32_t c, const CharacterRange& r) { return c < r.first; });
  return after != std::begin(ranges) && character <= std::prev(after)->last;
}

utf8proc_category_t Category(uint32_t character) { return utf8proc_category(static_cast<utf8proc_int32_t>(character)); }

int Options(NormalForm form) {
  switch (form) {
    case NormalForm::kC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    case NormalForm::kD: return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE;
    case NormalForm::kKC: return UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT;
    case NormalForm::kKD: break;
  }
  return UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT;
}

void AppendNormalized(std::string& text, std::string_view part, NormalForm form) {
  if (part.empty()) return;
  utf8proc_uint8_t* made = nullptr;
  const utf8proc_ssize_t length = utf8proc_map(reinterpret_cast<const utf8proc_uint8_t*>(part.data()), static_cast<utf8proc_ssize_t>(part.size()), &made,
                                               static_cast<utf8proc_option_t>(Options(form)));
  const std::unique_ptr<utf8proc_uint8_t, decltype(&std::free)> owner(made, &std::free);
  if (length < 0) throw std::bad_alloc();  // the text is valid, so nothing else fails
  text.append(reinterpret_cast<const char*>(made), static_cast<size_t>(length));
}

}  // namespace

bool IsWhitespace(uint32_t c) {
  return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 ||
         c == 0x202F || c == 0x205F || c == 0x3000;
}

bool IsPythonSpace(uint32_t c) { return IsWhitespace(c) || (c >= 0x1C && c <= 0x1F); }

bool IsNumeric(uint32_t c) {
  const utf8proc_category_t category = Category(c);
  return category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL || category == UTF8PROC_CATEGORY_NO || In(kNewNumbers, c);
}

bool IsPunctuation(uint32_t c) {
  if (c < 0x80) return (c >= 0x21 && c <= 0x2F) || (c >= 0x3A && c <= 0x40) || (c >= 0x5B && c <= 0x60) || (c >= 0x7B && c <= 0x7E);
  const utf8proc_category_t category = Category(c);
  return (category >= UTF8PROC_CATEGORY_PC && category <= UTF8PROC_CATEGORY_PO && !In(kNewPunctuation, c)) || In(kOldPunctuation, c);
}

bool IsCombiningMark(uint32_t c) {
  const utf8proc_category_t category = Category(c);
  return (category >= UTF8PROC_CATEGORY_MN && category <= UTF8PROC_CATEGORY_ME && !In(kNewMarks, c)) || In(kOldMarks, c);
}

bool IsWord(uint32_t c) {
  if (c < 0x80) return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || c == '_' || (c >= 'a' && c <= 'z');
  static const Regex word(R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}])", Regex::Syntax::kPcre2);
  std::string text;
  AppendCharacter(text, c);
  Regex::Effort effort(text.size());
  return word.Find(text, 0, effort).has_value();
}

void AppendLowercase(std::string& text, uint32_t c) {
  if (c < 0x80) {
    text.push_back(static_cast<char>(c >= 'A' && c <= 'Z' ? c + 0x20 : c));
  } else if (c == 0x130) {
    text += "i\xCC\x87";
  } else if (c == 0x1C89 || c == 0xA7CC || c == 0xA7CE || c == 0xA7D2 || c == 0xA7D4 || c == 0xA7DA) {  // of Unicode 16 and 17, and so the others below
    AppendCharacter(text, c + 1);
  } else if (c == 0xA7CB) {
    AppendCharacter(text, 0x264);
  } else if (c == 0xA7DC) {
    AppendCharacter(text, 0x19B);
  } else if (c >= 0x10D50 && c <= 0x10D65) {
    AppendCharacter(text, c + 0x20);
  } else if (c >= 0x16EA0 && c <= 0x16EB8) {
    AppendCharacter(text, c + 0x1B);
  } else {
    AppendCharacter(text, static_cast<uint32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c))));
  }
}

std::string Normalized(std::string_view text, NormalForm form) {
  // below U+0300 nothing composes, and ASCII has no other form
  const unsigned char least = form == NormalForm::kC ? 0xCC : 0x80;
  if (std::all_of(text.begin(), text.end(), [&](char byte) { return static_cast<unsigned char>(byte) < least; })) return std::string(text);
  std::string made;
  made.reserve(text.size() + text.size() / 2);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (!In(kNewInNormalForms, NextCharacter(text, at))) continue;
    AppendNormalized(made, text.substr(begin, here - begin), form);
    made += text.substr(here, at - here);
    begin = at;
  }
  AppendNormalized(made, text.substr(begin), form);
  return made;
}

std::string_view PythonStripped(std::string_view text) {
  size_t begin = 0, end = text.size();
  while (begin < end) {
    size_t next = begin;
    if (!IsPythonSpace(NextCharacter(text, next))) break;
    begin = next;
  }
  while (end > begin) {
    size_t before = end;
    if (!IsPythonSpace(PreviousCharacter(text, before))) break;
    end = before;
  }
  return text.substr(begin, end - begin);
}

}  // namespace sol_rt
