// Texts that come from files, as an error's one line may show them.
#pragma once

#include <string>
#include <string_view>

namespace sol_rt {

// In one line: line breaks become spaces, what is not printable its escape, what is not UTF-8 U+FFFD.
std::string Printable(std::string_view text);
// The first `limit` characters; the last of them is `…` if there are more.
std::string Cut(std::string_view text, size_t limit);
// Runs of white space become one space; then cut.
std::string Short(std::string_view text, size_t limit = 80);
// As Python writes the string.
std::string Quoted(std::string_view text);
bool IsUtf8(std::string_view text);

}  // namespace sol_rt
