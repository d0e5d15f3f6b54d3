// UTF-8: checks, steps from character to character, and repair of bytes that are no text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sol_rt {

bool IsValidUtf8(std::string_view bytes);

// The character at `at` of valid UTF-8, which moves past it.
uint32_t NextCharacter(std::string_view text, size_t& at);
// The character that ends at `at` of valid UTF-8, which moves before it.
uint32_t PreviousCharacter(std::string_view text, size_t& at);
void AppendCharacter(std::string& text, uint32_t character);

size_t CountCharacters(std::string_view text);
// Offset in bytes of the character with this index; the text's length beyond its end.
size_t OffsetOfCharacter(std::string_view text, size_t index);

// The bytes as text: every longest beginning of a character that the next byte does not go on with becomes one U+FFFD (Unicode chapter 3,
// "substitution of maximal subparts").
std::string Repaired(std::string_view bytes);

inline constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace sol_rt
