#include "text/pipeline/decoder.h"

#include <array>

#include "base/error.h"
#include "text/pipeline/byte_alphabet.h"
#include "text/pipeline/pattern.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr int kDeepest = 8;
constexpr size_t kMostSteps = 64;
constexpr size_t kLongestText = size_t{1} << 26;  // bytes that patterns may make of the tokens together

constexpr std::array<int16_t, 0x144> CharacterBytes() {
  std::array<int16_t, 0x144> bytes{};
  for (int16_t& byte : bytes) byte = -1;
  for (unsigned byte = 0; byte < 256; ++byte) bytes[kByteCharacters[byte]] = static_cast<int16_t>(byte);
  return bytes;
}

constexpr std::array<int16_t, 0x144> kCharacterBytes = CharacterBytes();

// Appends the bytes of a token of the byte alphabet; a token with other characters is its own bytes.
void AppendBytes(std::string& bytes, const std::string& token) {
  const size_t before = bytes.size();
  for (size_t at = 0; at < token.size();) {
    const uint32_t character = NextCharacter(token, at);
    if (character >= kCharacterBytes.size() || kCharacterBytes[character] < 0) {
      bytes.resize(before);
      bytes += token;
      return;
    }
    bytes += static_cast<char>(kCharacterBytes[character]);
  }
}

// The byte that a token such as <0x0A> stands for, or -1.
int ByteOf(const std::string& token) {
  if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>') return -1;
  int value = 0;
  for (size_t i = 3; i < 5; ++i) {
    const char c = token[i];
    if (i == 3 && c == '+') continue;  // `tokenizers` reads a number with a sign, too
    if (c >= '0' && c <= '9') value = value * 16 + (c - '0');
    else if ((c | 0x20) >= 'a' && (c | 0x20) <= 'f') value = value * 16 + ((c | 0x20) - 'a' + 10);
    else return -1;
  }
  return value;
}

void DecodeBytes(std::vector<std::string>& tokens) {
  std::vector<std::string> made;
  std::string bytes;
  const auto finish = [&] {
    if (IsValidUtf8(bytes)) {
      if (!bytes.empty()) made.push_back(bytes);
    } else {
      made.insert(made.end(), bytes.size(), std::string(kReplacement));
    }
    bytes.clear();
  };
  for (std::string& token : tokens) {
    const int byte = ByteOf(token);
    if (byte >= 0) {
      bytes += static_cast<char>(byte);
    } else {
      finish();
      made.push_back(std::move(token));
    }
  }
  finish();
  tokens = std::move(made);
}

void StripEnds(std::string& token, const std::string& character, uint32_t start, uint32_t stop) {
  size_t begin = 0, end = token.size();
  const size_t length = character.size();
  for (uint32_t i = 0; i < start && token.compare(begin, length, character) == 0; ++i) begin += length;
  for (uint32_t i = 0; i < stop && end >= length && token.compare(end - length, length, character) == 0; ++i) end -= length;
  token = end > begin ? token.substr(begin, end - begin) : std::string();
}

std::string Joined(const std::vector<std::string>& tokens, const char* between) {
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (i > 0) text += between;
    text += tokens[i];
  }
  return text;
}

void ReplaceAll(std::string& text, const std::string& old, const std::string& fresh) {
  if (old.empty()) return;
  std::string made;
  size_t begin = 0;
  for (size_t at = 0; (at = text.find(old, begin)) != std::string::npos; begin = at + old.size()) made.append(text, begin, at - begin).append(fresh);
  if (begin > 0) text = made.append(text, begin, std::string::npos);
}

// `bytes`: of the tokens before, to which this one's are added.
void ReplaceMatches(std::string& token, const Regex& pattern, const std::string& fresh, Regex::Effort& effort, size_t& bytes) {
  std::vector<Stretch> stretches;
  pattern.Stretches(token, effort, stretches);
  std::string made;
  for (const Stretch& stretch : stretches) {
    if (stretch.is_match) made += fresh;
    else made.append(token, stretch.begin, stretch.end - stretch.begin);
    if (made.size() > kLongestText - bytes) {
      throw Error(SOL_ERROR_TEXT, "tokens: the tokenizer's decoder makes more than 64 MB of them; decode fewer");
    }
  }
  bytes += made.size();
  token = std::move(made);
}

}  // namespace

Decoder::Decoder(const Settings& file) {
  if (file.Has("decoder")) Read(file.At("decoder"), 0);
}

void Decoder::Read(const Settings& settings, int depth) {
  if (depth > kDeepest) settings.Fail("type", "sequences that nest too deeply", "at most " + std::to_string(kDeepest));
  has_decoder_ = true;
  const std::string type = settings.Type();
  Step step{};
  if (type == "Sequence") {
    for (const Settings& item : settings.Items("decoders")) Read(item, depth + 1);
    return;
  }
  if (type == "ByteLevel") {
    step.kind = Kind::kByteLevel;
  } else if (type == "Metaspace") {
    step.kind = Kind::kMetaspace;
    AppendCharacter(step.text, settings.Character("replacement"));
    const std::string scheme = settings.Has("prepend_scheme") ? settings.Text("prepend_scheme") : "always";
    if (scheme != "first" && scheme != "never" && scheme != "always") settings.Fail("prepend_scheme", Brief(scheme), "first, never or always");
    if (!settings.Flag("add_prefix_space", true) && scheme != "never") settings.Fail("add_prefix_space", "false", "true, as prepend_scheme says");
    step.drops_first = scheme != "never";
  } else if (type == "ByteFallback") {
    step.kind = Kind::kByteFallback;
  } else if (type == "Fuse") {
    step.kind = Kind::kFuse;
  } else if (type == "Strip") {
    step.kind = Kind::kStrip;
    AppendCharacter(step.text, settings.Character("content"));
    step.start = settings.Number("start");
    step.stop = settings.Number("stop");
  } else if (type == "Replace") {
    step.kind = Kind::kReplace;
    step.pattern = ReadPattern(settings);
    step.text = settings.Text("content");
  } else if (type == "BPEDecoder") {
    step.kind = Kind::kBpe;
    step.text = settings.Text("suffix");
  } else {
    throw Unsupported("a decoder of type " + Brief(type), "ByteLevel, Metaspace, ByteFallback, Fuse, Strip, Replace, BPEDecoder or Sequence");
  }
  if (steps_.size() >= kMostSteps) throw Unsupported("a decoder with more steps", "at most " + std::to_string(kMostSteps));
  steps_.push_back(std::move(step));
}

void Decoder::RunStep(const Step& step, std::vector<std::string>& tokens, Regex::Effort& effort) {
  switch (step.kind) {
    case Kind::kByteLevel: {
      std::string bytes;
      for (const std::string& token : tokens) AppendBytes(bytes, token);
      tokens = {Repaired(bytes)};
      return;
    }
    case Kind::kMetaspace:
      for (size_t i = 0; i < tokens.size(); ++i) ReplaceAll(tokens[i], step.text, i == 0 && step.drops_first ? "" : " ");
      return;
    case Kind::kByteFallback: return DecodeBytes(tokens);
    case Kind::kFuse: tokens = {Joined(tokens, "")}; return;
    case Kind::kStrip:
      for (std::string& token : tokens) StripEnds(token, step.text, step.start, step.stop);
      return;
    case Kind::kReplace: {
      size_t bytes = 0;
      for (std::string& token : tokens) ReplaceMatches(token, *step.pattern, step.text, effort, bytes);
      return;
    }
    case Kind::kBpe:
      for (size_t i = 0; i < tokens.size(); ++i) ReplaceAll(tokens[i], step.text, i + 1 == tokens.size() ? "" : " ");
      return;
  }
}

std::string Decoder::Run(std::vector<std::string> tokens) const {
  if (!has_decoder_) return Joined(tokens, " ");
  size_t bytes = 0;
  for (const std::string& token : tokens) bytes += token.size();
  Regex::Effort effort(bytes);
  for (const Step& step : steps_) RunStep(step, tokens, effort);
  return Joined(tokens, "");
}

}  // namespace sol_rt
