// Cuts a normalized text into words, which the model encodes one by one: the `pre_tokenizer` of tokenizer.json.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/model/tokenizer_file.h"
#include "text/unicode/regex.h"

namespace sol_rt {

// A text and the words in it.
struct Words {
  struct Word {
    size_t begin, end;   // in `text`
    bool is_first;       // whether it comes of the beginning of the whole text
    size_t first_bytes;  // how much of it comes of the whole text's first character
  };
  std::string text;
  std::vector<Word> words;
};

class PreTokenizer {
 public:
  // Throws Unsupported for a step of another kind, or SOL_ERROR_BUNDLE for a damaged one.
  explicit PreTokenizer(const Settings& file);

  // `words` holds one word at first. Empty words are dropped. `effort` is what the patterns may still cost; throws SOL_ERROR_TEXT if they take
  // longer, or if the steps make too long a text.
  void Run(Words& words, Regex::Effort& effort) const;

 private:
  enum class Kind { kSplit, kCharacters, kByteLevel, kMetaspace };
  enum class Behavior { kRemoved, kIsolated, kMergedWithPrevious, kMergedWithNext, kContiguous };
  enum class Prepend { kFirst, kNever, kAlways };
  struct Step {
    Kind kind;
    std::shared_ptr<const Regex> pattern;           // of kSplit and kByteLevel; may be null in the latter
    bool (*is_delimiter)(uint32_t) = nullptr;       // of kCharacters
    bool inverted = false;                          // what the pattern does not find is the delimiter
    Behavior behavior = Behavior::kIsolated;
    bool prefix_space = false;                      // of kByteLevel
    std::string replacement;                        // of kMetaspace, for a space
    Prepend prepend = Prepend::kAlways;
    bool splits = true;
  };

  void Read(const Settings& settings, int depth);
  static Behavior ReadBehavior(const Settings& settings);
  static void Cut(Words& words, const Step& step, Regex::Effort& effort);
  static void Resolve(std::vector<Stretch>& stretches, Behavior behavior);
  static void PrefixSpace(Words& words);
  static void MapBytes(Words& words);
  static void ReplaceSpaces(Words& words, const Step& step);

  std::vector<Step> steps_;
};

}  // namespace sol_rt
