// Regular expressions of `tokenizer.json`, which are written for Oniguruma (Ruby's syntax), run by PCRE2.
//
// A pattern is translated construct by construct. What is not known to mean the same is refused, as are references, calls and conditions, which no
// tokenizer needs. Matching has bounds, so that no pattern and text take more than a few seconds.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sol_rt {

// A stretch of a text, in bytes, and whether it is what was searched for or what lies between.
struct Stretch {
  size_t begin, end;
  bool is_match;
};

class Regex {
 public:
  enum class Syntax { kOniguruma, kPcre2, kLiteral };
  struct Found {
    size_t begin, end;
  };
  // Steps that all searches in one text may still take together.
  class Effort {
   public:
    explicit Effort(size_t text_bytes);
    uint32_t left() const { return left_; }
    void Spend(uint32_t steps) { left_ = steps < left_ ? left_ - steps : 0; }

   private:
    uint32_t left_;
  };

  // Throws Unsupported for a pattern that is too long or that the core cannot run with the same meaning.
  explicit Regex(std::string_view pattern, Syntax syntax = Syntax::kOniguruma);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;

  // The first match that begins at `start` or later. Throws SOL_ERROR_TEXT if it takes too long.
  std::optional<Found> Find(std::string_view text, size_t start, Effort& effort) const;
  // All matches and what lies between them, in order. An empty text is one stretch that is no match.
  void Stretches(std::string_view text, Effort& effort, std::vector<Stretch>& stretches) const;

 private:
  struct Compiled;
  std::string literal_;
  std::unique_ptr<Compiled> compiled_;
};

}  // namespace sol_rt
