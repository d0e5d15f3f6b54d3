#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

// Bytes of the character that begins at `at`, and whether it is complete and valid. If it is not, the bytes are those that one U+FFFD replaces.
struct Scanned {
  size_t bytes;
  bool valid;
};

Scanned Scan(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t first = byte(at);
  if (first < 0x80) return {1, true};
  size_t length;
  uint8_t low = 0x80, high = 0xBF;  // of the second byte: shuts out overlong forms, surrogates and what lies beyond U+10FFFF
  if (first >= 0xC2 && first <= 0xDF) {
    length = 2;
  } else if (first >= 0xE0 && first <= 0xEF) {
    length = 3;
    if (first == 0xE0) low = 0xA0;
    if (first == 0xED) high = 0x9F;
  } else if (first >= 0xF0 && first <= 0xF4) {
    length = 4;
    if (first == 0xF0) low = 0x90;
    if (first == 0xF4) high = 0x8F;
  } else {
    return {1, false};
  }
  for (size_t i = 1; i < length; ++i) {
    if (at + i >= text.size() || byte(at + i) < low || byte(at + i) > high) return {i, false};
    low = 0x80;
    high = 0xBF;
  }
  return {length, true};
}

bool Continues(char byte) { return (static_cast<uint8_t>(byte) & 0xC0) == 0x80; }

}  // namespace

bool IsValidUtf8(std::string_view bytes) {
  for (size_t at = 0; at < bytes.size();) {
    const Scanned found = Scan(bytes, at);
    if (!found.valid) return false;
    at += found.bytes;
  }
  return true;
}

uint32_t NextCharacter(std::string_view text, size_t& at) {
  const uint8_t first = static_cast<uint8_t>(text[at++]);
  if (first < 0x80) return first;
  uint32_t character = first < 0xE0 ? first & 0x1Fu : first < 0xF0 ? first & 0x0Fu : first & 0x07u;
  while (at < text.size() && Continues(text[at])) character = character << 6 | (static_cast<uint8_t>(text[at++]) & 0x3Fu);
  return character;
}

uint32_t PreviousCharacter(std::string_view text, size_t& at) {
  do {
    --at;
  } while (at > 0 && Continues(text[at]));
  size_t next = at;
  return NextCharacter(text, next);
}

void AppendCharacter(std::string& text, uint32_t character) {
  const auto add = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (character < 0x80) {
    add(character);
  } else if (character < 0x800) {
    add(0xC0 | character >> 6);
    add(0x80 | (character & 0x3F));
  } else if (character < 0x10000) {
    add(0xE0 | character >> 12);
    add(0x80 | (character >> 6 & 0x3F));
    add(0x80 | (character & 0x3F));
  } else {
    add(0xF0 | character >> 18);
    add(0x80 | (character >> 12 & 0x3F));
    add(0x80 | (character >> 6 & 0x3F));
    add(0x80 | (character & 0x3F));
  }
}

size_t CountCharacters(std::string_view text) {
  size_t count = 0;
  for (char byte : text) count += !Continues(byte);
  return count;
}

size_t OffsetOfCharacter(std::string_view text, size_t index) {
  for (size_t at = 0; at < text.size(); ++at) {
    if (!Continues(text[at]) && index-- == 0) return at;
  }
  return text.size();
}

std::string Repaired(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  for (size_t at = 0; at < bytes.size();) {
    const Scanned found = Scan(bytes, at);
    text += found.valid ? bytes.substr(at, found.bytes) : kReplacement;
    at += found.bytes;
  }
  return text;
}

}  // namespace sol_rt
