// Changes a text before it is cut into words: the `normalizer` of tokenizer.json.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/model/tokenizer_file.h"
#include "text/unicode/character.h"
#include "text/unicode/regex.h"

namespace sol_rt {

// A text and how much of it comes of the original's first character: what a word before which nothing stands may get a space for.
struct NormalizedText {
  std::string text;
  size_t first_bytes;
};

class Normalizer {
 public:
  // Throws Unsupported for a step of another kind, or SOL_ERROR_BUNDLE for a damaged one.
  explicit Normalizer(const Settings& file);

  // `effort` is what the patterns may still cost. Throws SOL_ERROR_TEXT if they take longer, or make too long a text.
  NormalizedText Apply(NormalizedText text, Regex::Effort& effort) const;
  std::string Apply(std::string_view text, Regex::Effort& effort) const;

 private:
  enum class Kind { kForm, kLowercase, kPrepend, kReplace, kStrip, kStripAccents, kByteLevel };
  struct Step {
    Kind kind;
    NormalForm form = NormalForm::kC;
    std::string text;                      // that is put before, or instead
    std::shared_ptr<const Regex> pattern;  // what is replaced
    bool left = false, right = false;      // ends that are stripped
  };

  void Read(const Settings& settings, int depth);
  static void Run(const Step& step, NormalizedText& text, Regex::Effort& effort);

  std::vector<Step> steps_;
};

}  // namespace sol_rt
