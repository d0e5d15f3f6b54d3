#include "text/unicode/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <limits>
#include <new>

#include "base/error.h"
#include "text/unicode/oniguruma.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kLongestPattern = 16384;       // bytes
constexpr uint32_t kUsualSteps = 2000;          // of one search; a search that needs more is repeated and takes from the text's effort
constexpr uint32_t kStepsOfText = 20'000'000;   // beyond kUsualSteps, of all searches in one text, and kStepsOfByte more
constexpr uint32_t kStepsOfByte = 64;           // for each of its bytes: a look at all of a long run of spaces is usual
constexpr uint32_t kHeapKibibytes = 64 * 1024;  // for the places where one search may go back to

struct Freed {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
  void operator()(pcre2_compile_context* context) const { pcre2_compile_context_free(context); }
};
template <class T>
using Owned = std::unique_ptr<T, Freed>;

template <class T>
Owned<T> Checked(T* made) {
  if (made == nullptr) throw std::bad_alloc();
  return Owned<T>(made);
}

}  // namespace

struct Regex::Compiled {
  Owned<pcre2_code> code;

  // Memory that searches write to; each thread has its own.
  struct Place {
    Owned<pcre2_match_data> data;
    Owned<pcre2_match_context> context;
  };

  Place MakePlace() const {
    Place place{Checked(pcre2_match_data_create_from_pattern(code.get(), nullptr)), Checked(pcre2_match_context_create(nullptr))};
    pcre2_set_heap_limit(place.context.get(), kHeapKibibytes);
    return place;
  }

  std::optional<Found> Find(std::string_view text, size_t start, Effort& effort, Place& place) const {
    uint32_t options = PCRE2_NO_UTF_CHECK;
    for (uint32_t limit = kUsualSteps;;) {
      pcre2_set_match_limit(place.context.get(), limit);
      const int count = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start, options, place.data.get(), place.context.get());
      if (count == PCRE2_ERROR_NOMATCH) return std::nullopt;
      if (count == PCRE2_ERROR_JIT_STACKLIMIT) {
        options |= PCRE2_NO_JIT;
        continue;
      }
      if (count >= 0) {
        const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(place.data.get());
        return Found{bounds[0], std::max(bounds[0], bounds[1])};
      }
      if (count == PCRE2_ERROR_NOMEMORY) throw std::bad_alloc();
      if (limit > kUsualSteps) effort.Spend(limit);
      if (count != PCRE2_ERROR_MATCHLIMIT || effort.left() <= limit) {
        throw Error(SOL_ERROR_TEXT, "text: the tokenizer's pattern takes too long on it; leave out its long runs of similar characters");
      }
      limit = std::min(effort.left(), limit > std::numeric_limits<uint32_t>::max() / 8 ? effort.left() : limit * 8);
    }
  }
};

Regex::Effort::Effort(size_t text_bytes) {
  const uint64_t steps = kStepsOfText + static_cast<uint64_t>(kStepsOfByte) * text_bytes;
  left_ = static_cast<uint32_t>(std::min<uint64_t>(steps, std::numeric_limits<uint32_t>::max()));
}

Regex::Regex(std::string_view pattern, Syntax syntax) {
  if (pattern.size() > kLongestPattern) {
    throw Unsupported("a pattern of " + std::to_string(pattern.size()) + " bytes", "at most " + std::to_string(kLongestPattern));
  }
  if (syntax == Syntax::kLiteral && !pattern.empty()) {
    literal_ = pattern;
    return;
  }
  const std::string translated = syntax == Syntax::kOniguruma ? FromOniguruma(pattern) : std::string(pattern);
  const Owned<pcre2_compile_context> context = Checked(pcre2_compile_context_create(nullptr));
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  pcre2_set_parens_nest_limit(context.get(), 200);
  int error = 0;
  PCRE2_SIZE offset = 0;
  Owned<pcre2_code> code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                                       PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C, &error, &offset, context.get()));
  if (!code) {
    char reason[120] = "";
    pcre2_get_error_message(error, reinterpret_cast<PCRE2_UCHAR*>(reason), sizeof reason);
    throw Unsupported("the pattern \"" + std::string(pattern.substr(0, 200)) + "\" (" + reason + ")", "one that PCRE2 compiles");
  }
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);  // where the system allows no new machine code, PCRE2 interprets the pattern
  compiled_ = std::make_unique<Compiled>(Compiled{std::move(code)});
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

std::optional<Regex::Found> Regex::Find(std::string_view text, size_t start, Effort& effort) const {
  if (!compiled_) {
    const size_t at = text.find(literal_, start);
    return at == std::string_view::npos ? std::nullopt : std::optional<Found>(Found{at, at + literal_.size()});
  }
  Compiled::Place place = compiled_->MakePlace();
  return compiled_->Find(text, start, effort, place);
}

void Regex::Stretches(std::string_view text, Effort& effort, std::vector<Stretch>& stretches) const {
  stretches.clear();
  if (text.empty()) {
    stretches.push_back({0, 0, false});
    return;
  }
  std::optional<Compiled::Place> place;
  if (compiled_) place = compiled_->MakePlace();
  size_t previous = 0;  // end of the last stretch
  size_t last_match = static_cast<size_t>(-1);
  for (size_t start = 0; start <= text.size();) {
    std::optional<Found> found;
    if (place) {
      found = compiled_->Find(text, start, effort, *place);
    } else if (const size_t at = text.find(literal_, start); at != std::string_view::npos) {
      found = Found{at, at + literal_.size()};
    }
    if (!found) break;
    if (found->begin == found->end && found->end == last_match) {  // an empty match right after another match does not count
      if (start == text.size()) break;
      NextCharacter(text, start);
      continue;
    }
    start = last_match = found->end;
    if (previous != found->begin) stretches.push_back({previous, found->begin, false});
    stretches.push_back({found->begin, found->end, true});
    previous = found->end;
  }
  if (previous != text.size()) stretches.push_back({previous, text.size(), false});
}

}  // namespace sol_rt
