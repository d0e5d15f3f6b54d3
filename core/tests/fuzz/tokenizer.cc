// Fuzz target of the text part: bytes of a tokenizer.json or a chat_segments.json, a zero byte, and a text. No input may crash, hang or leak, tokens are ids
// of the tokenizer, and what is decoded is valid UTF-8.
//
// The text is encoded in every way, decoded whole and streamed. Errors of the core are results like others; any other exception ends the program.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/error.h"
#include "fuzz/json_mutator.h"
#include "text/chat_segments.h"
#include "text/stream/text_stream.h"
#include "text/text_writer.h"
#include "text/tokenizer.h"
#include "text/unicode/utf8.h"

namespace {

constexpr size_t kMostTokens = 32;  // that are decoded one by one: a stream looks back at a few tokens only
constexpr const char* kTokenizer = R"({"model": {"type": "BPE", "vocab": {"a": 0, "<s>": 1}, "merges": []}, "added_tokens": [
  {"id": 1, "content": "<s>", "special": true, "normalized": false, "lstrip": true, "rstrip": true, "single_word": false}]})";

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

void RequireIds(const std::vector<int32_t>& tokens, int32_t last) {
  for (int32_t token : tokens) Require(token >= 0 && token <= last, "a token is no id");
}

void Use(const std::shared_ptr<const sol_rt::Tokenizer>& tokenizer, std::string_view text) {
  for (int way = 0; way < 4; ++way) {
    try {
      const bool adds = (way & 1) != 0;  // what a template adds has any id
      const std::vector<int32_t> tokens = tokenizer->Encode(text, adds, (way & 2) != 0);
      RequireIds(tokens, adds ? INT32_MAX : tokenizer->LastId());
      const bool skip = way == 1 || way == 2;
      Require(sol_rt::IsValidUtf8(tokenizer->Decode(tokens.data(), tokens.size(), skip)), "decoded text is not UTF-8");
      sol_rt::TextStream stream(tokenizer, tokens, skip);
      std::string joined;
      for (size_t i = 0; i < tokens.size() && i < kMostTokens; ++i) joined += stream.Add(tokens[i]);
      joined += stream.Flush();
      Require(sol_rt::IsValidUtf8(joined), "streamed text is not UTF-8");
    } catch (const sol_rt::Error&) {
    }
  }
  try {
    const size_t half = text.size() / 2;
    RequireIds(tokenizer->EncodeRendered(text, {{0, half / 2}, {half, text.size()}}), tokenizer->LastId());
  } catch (const sol_rt::Error&) {
  }
  std::vector<int32_t> odd;
  for (int32_t id = 0; id < 16; ++id) odd.push_back(id);  // in a small vocabulary all, also what no text makes
  odd.insert(odd.end(), {-1, tokenizer->LastId(), tokenizer->LastId() + 1, INT32_MAX, INT32_MIN});
  try {
    tokenizer->Decode(odd.data(), odd.size(), true);
  } catch (const sol_rt::Error&) {
  }
  tokenizer->TokenId(text);
  sol_rt::TextWriter writer(tokenizer, odd, {"a", "ab"}, {0});
  try {
    writer.Add(1);
    writer.Flush();
  } catch (const sol_rt::Error&) {
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  sol_rt::JsonMutator mutator(seed);
  const size_t way = mutator.Below(8);
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = std::min(input.find('\0'), input.size());
  const std::string_view file = input.substr(0, end), text = input.substr(std::min(end + 1, size));
  std::string changed;
  if (way > 1) changed = way > 3 ? mutator.Changed(file) : std::string(file);
  if (changed.empty()) return LLVMFuzzerMutate(data, size, max_size);
  changed += '\0' + (way > 3 ? std::string(text) : mutator.ChangedText(std::string(text), file));
  if (changed.size() > max_size) return LLVMFuzzerMutate(data, size, max_size);
  std::memcpy(data, changed.data(), changed.size());
  return changed.size();
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const size_t end = input.find('\0');
  const std::string_view file = input.substr(0, end);
  const std::string_view text = end == std::string_view::npos ? std::string_view("a b1 \xC3\xA9 <s>") : input.substr(end + 1);
  static const std::shared_ptr<const sol_rt::Tokenizer> kept = sol_rt::Tokenizer::FromJson(kTokenizer, "tokenizer.json");
  try {
    Use(sol_rt::Tokenizer::FromJson(file, "tokenizer.json", {0, 1}), text);
    return 0;  // no file is both
  } catch (const sol_rt::Error&) {
  }
  try {
    sol_rt::ChatSegments::FromJson(file, "chat_segments.json", kept)->Encode({{"user", std::string(text)}, {"assistant", ""}, {"user", "a"}});
  } catch (const sol_rt::Error&) {
  }
  return 0;
}
