// The alphabet of byte-level tokenizers: one printable character for each byte.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#include "text/unicode/utf8.h"

namespace sol_rt {

// Bytes that are printable in Latin-1 are their own characters; the others, in order, are those from U+0100 on.
constexpr std::array<uint16_t, 256> ByteCharacters() {
  std::array<uint16_t, 256> characters{};
  uint16_t next = 0x100;
  for (unsigned byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
    characters[byte] = printable ? static_cast<uint16_t>(byte) : next++;
  }
  return characters;
}

inline constexpr std::array<uint16_t, 256> kByteCharacters = ByteCharacters();

inline std::string ToByteCharacters(std::string_view text) {
  std::string made;
  made.reserve(text.size() * 2);
  for (char byte : text) AppendCharacter(made, kByteCharacters[static_cast<uint8_t>(byte)]);
  return made;
}

}  // namespace sol_rt
