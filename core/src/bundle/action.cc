#include "bundle/action.h"

#include <cstdio>

#include "base/error.h"

namespace sol_rt {
namespace {

constexpr int kLargestBits = 16;
constexpr std::string_view kMix = "mix";

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

// Reads `k` or `s` and three digits at `at`; -1 for anything else.
int Density(std::string_view tag, size_t at, char letter) {
  if (tag.size() < at + 4 || tag[at] != letter || !IsDigit(tag[at + 1]) || !IsDigit(tag[at + 2]) || !IsDigit(tag[at + 3])) return -1;
  return 100 * (tag[at + 1] - '0') + 10 * (tag[at + 2] - '0') + (tag[at + 3] - '0');
}

// Reads bits after `q`, such as `4` or `mix`; -1 for anything else, such as `04`.
int Bits(std::string_view text) {
  if (text == kMix) return kMixedBits;
  if (text.empty() || text.size() > 2 || !IsDigit(text[0]) || (text.size() == 2 && (text[0] == '0' || !IsDigit(text[1])))) return -1;
  return text.size() == 1 ? text[0] - '0' : 10 * (text[0] - '0') + (text[1] - '0');
}

std::string Hundredths(char letter, int value) {
  char text[16];
  std::snprintf(text, sizeof(text), "%c%03d", letter, value);
  return text;
}

}  // namespace

std::string Action::Tag() const { return Hundredths('k', kv) + "-" + Variant(); }

std::string Action::Variant() const {
  return Hundredths('s', channels) + "-q" + (bits == kMixedBits ? std::string(kMix) : std::to_string(bits));
}

int64_t Action::Pages(int64_t context, int64_t page_size) const {
  const int64_t old_pages = (context + page_size) / page_size - 1;
  return kv == 100 ? old_pages : (old_pages * kv + 99) / 100;
}

Action Action::Parse(std::string_view tag) {
  Action action;
  action.kv = Density(tag, 0, 'k');
  action.channels = tag.size() > 4 && tag[4] == '-' ? Density(tag, 5, 's') : -1;
  const std::string_view bits = tag.size() > 11 && tag.substr(9, 2) == "-q" ? tag.substr(11) : std::string_view();
  action.bits = Bits(bits);
  const std::string text(tag);
  if (action.kv < 0 || action.channels < 0 || action.bits < 0) {
    UsageFault("action tag: got " + Brief(text) + ", expected kKKK-sSSS-qB, for example k030-s050-q4");
  }
  if (bits == std::to_string(kMixedBits)) {
    UsageFault("action tag '" + text + "': mixed bits are written qmix; use " + text.substr(0, 11) + "mix");
  }
  if (action.kv < 1 || action.kv > 100 || action.channels < 1 || action.channels > 100 || action.bits < 1 || action.bits > kLargestBits) {
    UsageFault("action tag " + Brief(text) + ": densities must be 001 to 100 hundredths, bits 1 to " + std::to_string(kLargestBits) + " or mix");
  }
  return action;
}

}  // namespace sol_rt
