// Properties of characters and normal forms, as `tokenizers` has them: it takes each from another library, of another version of Unicode.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sol_rt {

bool IsWhitespace(uint32_t character);     // White_Space
bool IsNumeric(uint32_t character);        // Nd, Nl, No
bool IsPunctuation(uint32_t character);    // P of Unicode 8, and ASCII punctuation
bool IsCombiningMark(uint32_t character);  // M of Unicode 9
bool IsWord(uint32_t character);           // Alphabetic, M, Nd, Pc, Join_Control
bool IsPythonSpace(uint32_t character);    // str.isspace() of Python, which the templates' `trim` takes

void AppendLowercase(std::string& text, uint32_t character);

enum class NormalForm { kC, kD, kKC, kKD };
// `text` is valid UTF-8; NUL is a character like others.
std::string Normalized(std::string_view text, NormalForm form);

// The text without the spaces at both ends that Python's str.strip() takes.
std::string_view PythonStripped(std::string_view text);

}  // namespace sol_rt
