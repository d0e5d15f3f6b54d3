#include "text/pipeline/normalizer.h"

#include <algorithm>

#include "base/error.h"
#include "text/pipeline/byte_alphabet.h"
#include "text/pipeline/pattern.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr int kDeepest = 8;
constexpr size_t kMostSteps = 64;
constexpr size_t kLongestInsert = 1024;           // bytes that a step may put in at one place
constexpr size_t kLongestText = size_t{1} << 26;  // bytes that the steps may make of a text

// Bytes of the first character.
size_t FirstBytes(std::string_view text) {
  size_t at = 0;
  if (!text.empty()) NextCharacter(text, at);
  return at;
}

void CheckLength(const std::string& made) {
  if (made.size() > kLongestText) throw Error(SOL_ERROR_TEXT, "text: the tokenizer's normalizer makes more than 64 MB of it; give a shorter text");
}

// Makes a text character by character. `change` appends what a character becomes.
template <class Change>
void ForEach(NormalizedText& text, Change change) {
  std::string made;
  made.reserve(text.text.size());
  size_t first_bytes = 0;
  for (size_t at = 0; at < text.text.size();) {
    const size_t here = at;
    const uint32_t character = NextCharacter(text.text, at);
    change(made, character, here);
    if (here < text.first_bytes) first_bytes = made.size();
  }
  text = {std::move(made), first_bytes};
}

}  // namespace

Normalizer::Normalizer(const Settings& file) {
  if (file.Has("normalizer")) Read(file.At("normalizer"), 0);
}

void Normalizer::Read(const Settings& settings, int depth) {
  if (depth > kDeepest) settings.Fail("type", "sequences that nest too deeply", "at most " + std::to_string(kDeepest));
  const std::string type = settings.Type();
  Step step{};
  if (type == "Sequence") {
    for (const Settings& item : settings.Items("normalizers")) Read(item, depth + 1);
    return;
  }
  if (type == "NFC" || type == "NFD" || type == "NFKC" || type == "NFKD") {
    step.kind = Kind::kForm;
    step.form = type == "NFC" ? NormalForm::kC : type == "NFD" ? NormalForm::kD : type == "NFKC" ? NormalForm::kKC : NormalForm::kKD;
  } else if (type == "Lowercase") {
    step.kind = Kind::kLowercase;
  } else if (type == "Prepend") {
    step.kind = Kind::kPrepend;
    step.text = settings.Text("prepend");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    step.pattern = ReadPattern(settings);
    step.text = settings.Text("content");
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    step.left = settings.Flag("strip_left");
    step.right = settings.Flag("strip_right");
  } else if (type == "StripAccents") {
    step.kind = Kind::kStripAccents;
  } else if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else {
    throw Unsupported("a normalizer of type " + Brief(type),
                      "NFC, NFD, NFKC, NFKD, Lowercase, Prepend, Replace, Strip, StripAccents, ByteLevel or Sequence");
  }
  if (steps_.size() >= kMostSteps) throw Unsupported("a normalizer with more steps", "at most " + std::to_string(kMostSteps));
  if (step.text.size() > kLongestInsert) {
    throw Unsupported("a normalizer that puts in a long text", "at most " + std::to_string(kLongestInsert) + " bytes");
  }
  steps_.push_back(std::move(step));
}

void Normalizer::Run(const Step& step, NormalizedText& text, Regex::Effort& effort) {
  switch (step.kind) {
    case Kind::kForm: {
      const std::string made = Normalized(text.text, step.form);
      if (made == text.text) return;
      const std::string first = Normalized(std::string_view(text.text).substr(0, text.first_bytes), step.form);
      size_t same = 0;  // marks that follow may come to stand among those of the first character
      for (size_t next = 0; next < first.size();) {
        NextCharacter(first, next);
        if (made.compare(same, next - same, first, same, next - same) != 0) break;
        same = next;
      }
      text = {made, same > 0 ? same : FirstBytes(made)};
      return;
    }
    case Kind::kLowercase:
      return ForEach(text, [](std::string& made, uint32_t character, size_t) { AppendLowercase(made, character); });
    case Kind::kStripAccents:
      return ForEach(text, [](std::string& made, uint32_t character, size_t) {
        if (!IsCombiningMark(character)) AppendCharacter(made, character);
      });
    case Kind::kByteLevel:
      return ForEach(text, [&](std::string& made, uint32_t character, size_t) {
        std::string bytes;
        AppendCharacter(bytes, character);
        made += ToByteCharacters(bytes);
      });
    case Kind::kPrepend:
      if (text.text.empty()) return;
      text.text.insert(0, step.text);
      text.first_bytes += step.text.size();
      return;
    case Kind::kStrip: {
      size_t begin = 0, end = text.text.size();
      for (size_t next = 0; step.left && next < end && IsWhitespace(NextCharacter(text.text, next));) begin = next;
      for (size_t before = end; step.right && before > begin && IsWhitespace(PreviousCharacter(text.text, before));) end = before;
      text = {text.text.substr(begin, end - begin), std::min(text.first_bytes, end) - std::min(text.first_bytes, begin)};
      return;
    }
    case Kind::kReplace: break;
  }
  std::vector<Stretch> stretches;
  step.pattern->Stretches(text.text, effort, stretches);
  std::string made;
  made.reserve(text.text.size());
  size_t first_bytes = 0;
  for (const Stretch& stretch : stretches) {
    if (stretch.is_match) made += step.text;
    else made.append(text.text, stretch.begin, stretch.end - stretch.begin);
    CheckLength(made);
    if (stretch.end <= text.first_bytes) first_bytes = made.size();
    else if (stretch.begin < text.first_bytes && !stretch.is_match) first_bytes = made.size() - (stretch.end - text.first_bytes);
  }
  text = {std::move(made), first_bytes};
}

NormalizedText Normalizer::Apply(NormalizedText text, Regex::Effort& effort) const {
  for (const Step& step : steps_) {
    Run(step, text, effort);
    CheckLength(text.text);  // a chain of steps that each double it grows beyond any memory
  }
  return text;
}

std::string Normalizer::Apply(std::string_view text, Regex::Effort& effort) const {
  return Apply({std::string(text), FirstBytes(text)}, effort).text;
}

}  // namespace sol_rt
