#include "text/pipeline/pre_tokenizer.h"

#include <algorithm>

#include "base/error.h"
#include "text/pipeline/byte_alphabet.h"
#include "text/pipeline/pattern.h"
#include "text/unicode/character.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr int kDeepest = 8;
constexpr size_t kMostSteps = 64;
constexpr size_t kLongestText = size_t{1} << 27;  // bytes that the steps may make of a text: the byte alphabet takes two for a byte
// GPT-2's words, as `tokenizers` has them
constexpr const char* kByteLevelPattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
// runs of word characters, and of what is neither these nor spaces
constexpr const char* kWhitespacePattern =
    R"([\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}]+|)"
    R"([^\p{Alphabetic}\p{M}\p{Nd}\p{Pc}\p{Join_Control}\x{9}-\x{d} \x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000}]+)";

std::string_view View(const Words& words, const Words::Word& word) { return std::string_view(words.text).substr(word.begin, word.end - word.begin); }

// The delimiters among the characters of a text, one by one.
void FindCharacters(std::string_view text, bool (*is_delimiter)(uint32_t), std::vector<Stretch>& stretches) {
  stretches.clear();
  size_t previous = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t here = at;
    if (!is_delimiter(NextCharacter(text, at))) continue;
    if (previous < here) stretches.push_back({previous, here, false});
    stretches.push_back({here, at, true});
    previous = at;
  }
  if (previous < text.size() || text.empty()) stretches.push_back({previous, text.size(), false});
}

}  // namespace

PreTokenizer::PreTokenizer(const Settings& file) {
  if (file.Has("pre_tokenizer")) Read(file.At("pre_tokenizer"), 0);
}

PreTokenizer::Behavior PreTokenizer::ReadBehavior(const Settings& settings) {
  const std::string name = settings.Text("behavior");
  if (name == "Removed") return Behavior::kRemoved;
  if (name == "Isolated") return Behavior::kIsolated;
  if (name == "MergedWithPrevious") return Behavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return Behavior::kMergedWithNext;
  if (name == "Contiguous") return Behavior::kContiguous;
  settings.Fail("behavior", Brief(name), "Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous");
}

void PreTokenizer::Read(const Settings& settings, int depth) {
  if (depth > kDeepest) settings.Fail("type", "sequences that nest too deeply", "at most " + std::to_string(kDeepest));
  const std::string type = settings.Type();
  Step step{};
  step.kind = Kind::kCharacters;
  if (type == "Sequence") {
    for (const Settings& item : settings.Items("pretokenizers")) Read(item, depth + 1);
    return;
  }
  if (type == "Split") {
    step.kind = Kind::kSplit;
    step.pattern = ReadPattern(settings);
    step.behavior = ReadBehavior(settings);
    step.inverted = settings.Flag("invert");
  } else if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
    step.prefix_space = settings.Flag("add_prefix_space");
    if (settings.Flag("use_regex", true)) step.pattern = std::make_shared<const Regex>(kByteLevelPattern);
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    AppendCharacter(step.replacement, settings.Character("replacement"));
    const std::string scheme = settings.Has("prepend_scheme") ? settings.Text("prepend_scheme") : "always";
    if (scheme != "first" && scheme != "never" && scheme != "always") settings.Fail("prepend_scheme", Brief(scheme), "first, never or always");
    if (!settings.Flag("add_prefix_space", true) && scheme != "never") settings.Fail("add_prefix_space", "false", "true, as prepend_scheme says");
    step.prepend = scheme == "first" ? Prepend::kFirst : scheme == "never" ? Prepend::kNever : Prepend::kAlways;
    step.splits = settings.Flag("split", true);
  } else if (type == "Digits") {
    step.is_delimiter = IsNumeric;
    step.behavior = settings.Flag("individual_digits") ? Behavior::kIsolated : Behavior::kContiguous;
  } else if (type == "Punctuation") {
    step.is_delimiter = IsPunctuation;
    step.behavior = settings.Has("behavior") ? ReadBehavior(settings) : Behavior::kIsolated;
  } else if (type == "WhitespaceSplit") {
    step.is_delimiter = IsWhitespace;
    step.behavior = Behavior::kRemoved;
  } else if (type == "Whitespace") {
    step.kind = Kind::kSplit;
    step.pattern = std::make_shared<const Regex>(kWhitespacePattern, Regex::Syntax::kPcre2);
    step.behavior = Behavior::kRemoved;
    step.inverted = true;
  } else if (type == "BertPreTokenizer") {
    step.is_delimiter = IsWhitespace;
    step.behavior = Behavior::kRemoved;
    steps_.push_back(step);
    step.is_delimiter = IsPunctuation;
    step.behavior = Behavior::kIsolated;
  } else {
    throw Unsupported("a pre_tokenizer of type " + Brief(type),
                      "ByteLevel, Split, Metaspace, Digits, Punctuation, Whitespace, WhitespaceSplit, BertPreTokenizer or Sequence");
  }
  if (steps_.size() >= kMostSteps) throw Unsupported("a pre_tokenizer with more steps", "at most " + std::to_string(kMostSteps));
  steps_.push_back(std::move(step));
}

// Turns stretches into the parts that stay; `is_match` then says that a part is dropped.
void PreTokenizer::Resolve(std::vector<Stretch>& stretches, Behavior behavior) {
  if (behavior == Behavior::kRemoved) return;
  const bool backwards = behavior == Behavior::kMergedWithNext;
  if (backwards) std::reverse(stretches.begin(), stretches.end());
  size_t kept = 0;
  bool previous = false;  // whether the stretch before was a delimiter
  for (const Stretch stretch : stretches) {
    bool joins = false;
    if (behavior == Behavior::kContiguous) joins = stretch.is_match == previous;
    if (behavior == Behavior::kMergedWithPrevious || backwards) joins = stretch.is_match && !previous;
    previous = stretch.is_match;
    if (joins && kept > 0) {
      (backwards ? stretches[kept - 1].begin : stretches[kept - 1].end) = backwards ? stretch.begin : stretch.end;
    } else {
      stretches[kept++] = {stretch.begin, stretch.end, false};
    }
  }
  stretches.resize(kept);
  if (backwards) std::reverse(stretches.begin(), stretches.end());
}

void PreTokenizer::Cut(Words& words, const Step& step, Regex::Effort& effort) {
  std::vector<Words::Word> cut;
  cut.reserve(words.words.size());
  std::vector<Stretch> stretches;
  for (const Words::Word& word : words.words) {
    const std::string_view text = View(words, word);
    if (step.pattern) step.pattern->Stretches(text, effort, stretches);
    else FindCharacters(text, step.is_delimiter, stretches);
    if (step.inverted) {
      for (Stretch& stretch : stretches) stretch.is_match = !stretch.is_match;
    }
    Resolve(stretches, step.behavior);
    for (const Stretch& stretch : stretches) {
      if (stretch.is_match || stretch.begin >= stretch.end) continue;
      const size_t first_bytes = std::min(word.first_bytes, stretch.end) - std::min(word.first_bytes, stretch.begin);
      const bool is_first = word.is_first && stretch.begin < word.first_bytes;
      cut.push_back({word.begin + stretch.begin, word.begin + stretch.end, is_first, is_first ? first_bytes : 0});
    }
  }
  words.words = std::move(cut);
}

void PreTokenizer::PrefixSpace(Words& words) {
  std::string made;
  made.reserve(words.text.size() + words.words.size());
  for (Words::Word& word : words.words) {
    const std::string_view text = View(words, word);
    const bool adds = text.front() != ' ';
    const size_t begin = made.size();
    if (adds) made += ' ';
    made += text;
    word = {begin, made.size(), word.is_first, word.first_bytes + (adds ? 1 : 0)};
  }
  words.text = std::move(made);
}

void PreTokenizer::MapBytes(Words& words) {
  std::string made;
  made.reserve(words.text.size() * 2);
  for (Words::Word& word : words.words) {
    const size_t begin = made.size();
    size_t first_bytes = 0;
    for (size_t at = word.begin; at < word.end; ++at) {
      AppendCharacter(made, kByteCharacters[static_cast<uint8_t>(words.text[at])]);
      if (at - word.begin < word.first_bytes) first_bytes = made.size() - begin;
    }
    word = {begin, made.size(), word.is_first, first_bytes};
  }
  words.text = std::move(made);
}

void PreTokenizer::ReplaceSpaces(Words& words, const Step& step) {
  std::string made;
  made.reserve(words.text.size() * 2);
  for (Words::Word& word : words.words) {
    const std::string_view text = View(words, word);
    const size_t begin = made.size();
    const bool has_mark = text.front() == ' ' || text.substr(0, step.replacement.size()) == step.replacement;
    size_t first_bytes = 0;
    if (!has_mark && (step.prepend == Prepend::kAlways || (step.prepend == Prepend::kFirst && word.is_first))) {
      made += step.replacement;
      first_bytes = step.replacement.size();
    }
    if (word.first_bytes == 0) first_bytes = 0;
    for (size_t at = 0; at < text.size(); ++at) {
      if (text[at] == ' ') made += step.replacement;
      else made += text[at];
      if (at < word.first_bytes) first_bytes = made.size() - begin;
    }
    word = {begin, made.size(), word.is_first, first_bytes};
  }
  words.text = std::move(made);
}

void PreTokenizer::Run(Words& words, Regex::Effort& effort) const {
  for (const Step& step : steps_) {
    switch (step.kind) {
      case Kind::kSplit:
      case Kind::kCharacters: Cut(words, step, effort); break;
      case Kind::kByteLevel:
        if (step.prefix_space) PrefixSpace(words);
        if (step.pattern) Cut(words, step, effort);
        MapBytes(words);
        break;
      case Kind::kMetaspace: {
        ReplaceSpaces(words, step);
        if (!step.splits) break;
        Step split{};
        split.kind = Kind::kSplit;
        split.pattern = std::make_shared<const Regex>(step.replacement, Regex::Syntax::kLiteral);
        split.behavior = Behavior::kMergedWithNext;
        Cut(words, split, effort);
        break;
      }
    }
    if (words.text.size() > kLongestText) {  // a chain of steps that each double it grows beyond any memory
      throw Error(SOL_ERROR_TEXT, "text: the tokenizer's pre_tokenizer makes more than 128 MB of it; give a shorter text");
    }
  }
}

}  // namespace sol_rt
