#include "text/tokenizer.h"

#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "base/error.h"
#include "text/model/added_tokens.h"
#include "text/model/bpe.h"
#include "text/model/tokenizer_file.h"
#include "text/pipeline/decoder.h"
#include "text/pipeline/normalizer.h"
#include "text/pipeline/post_processor.h"
#include "text/pipeline/pre_tokenizer.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kLongestText = size_t{1} << 26;  // bytes
constexpr size_t kLongestCached = 64;             // bytes of a word whose tokens are remembered within one text

class BpeTokenizer : public Tokenizer {
 public:
  BpeTokenizer(TokenizerFile file, const std::string& path, const std::vector<int32_t>& end_ids)
      : BpeTokenizer(Settings(file.settings, path, ""), file, path, end_ids) {}

  std::vector<int32_t> Encode(std::string_view text, bool add_special, bool parse_special) const override {
    return post_processor_.Run(Tokens(text, parse_special, nullptr), add_special);
  }

  std::vector<int32_t> EncodeRendered(std::string_view text, const std::vector<std::pair<size_t, size_t>>& user) const override {
    return Tokens(text, true, &user);
  }

  std::string Decode(const int32_t* tokens, size_t count, bool skip_special) const override {
    std::vector<std::string> texts;
    texts.reserve(count);
    for (size_t i = 0; i < count; ++i) {
      if (skip_special && skipped_.count(tokens[i]) != 0) continue;
      const AddedTokens::Token* const added = added_.Find(tokens[i]);
      if (added != nullptr) texts.push_back(added->written);
      else if (bpe_.vocabulary().Has(tokens[i])) texts.emplace_back(bpe_.vocabulary().Token(tokens[i]));
    }
    return decoder_.Run(std::move(texts));
  }

  std::optional<int32_t> TokenId(std::string_view token) const override {
    const int32_t added = added_.Id(token);
    const int32_t id = added >= 0 ? added : bpe_.vocabulary().Find(token);
    return id < 0 ? std::nullopt : std::optional<int32_t>(id);
  }

  int32_t LastId() const override { return std::max(bpe_.vocabulary().LastId(), added_.LastId()); }
  int32_t Size() const override { return static_cast<int32_t>(bpe_.vocabulary().size() + added_.CountBeside(bpe_.vocabulary())); }

 private:
  BpeTokenizer(const Settings& settings, TokenizerFile& file, const std::string& path, const std::vector<int32_t>& end_ids)
      : bpe_(file, path),
        normalizer_(settings),
        pre_tokenizer_(settings),
        post_processor_(settings),
        decoder_(settings),
        added_(settings, bpe_.vocabulary(), normalizer_, end_ids) {
    for (const auto& [id, token] : added_.tokens()) {
      if (added_.IsSpecial(token.written)) skipped_.insert(id);
      if (!token.special || token.content.empty()) continue;
      const int32_t same = bpe_.vocabulary().Find(token.content);
      if (same >= 0 && added_.Find(same) == nullptr) skipped_.insert(same);
      // the token for what the vocabulary lacks is special, too, but plain text makes it
      if (id != bpe_.unknown() || std::find(end_ids.begin(), end_ids.end(), id) != end_ids.end()) controls_.insert(id);
    }
  }

  // Tokens of a text. `user` as EncodeRendered has it, or null.
  std::vector<int32_t> Tokens(std::string_view text, bool special, const AddedTokens::UserParts* user) const {
    if (text.size() > kLongestText) {
      throw Error(SOL_ERROR_TEXT,
                  "text: got " + std::to_string(text.size()) + " bytes, expected at most " + std::to_string(kLongestText));
    }
    if (!IsValidUtf8(text)) throw Error(SOL_ERROR_TEXT, "prompt: not valid Unicode text; give it as UTF-8");
    std::vector<int32_t> tokens;
    Regex::Effort effort(text.size());
    for (const AddedTokens::Part& part : added_.Cut(text, false, special, user)) {
      if (part.token >= 0) {
        tokens.push_back(part.token);
        continue;
      }
      const std::string_view piece = text.substr(part.begin, part.end - part.begin);
      AddNormalized(piece, part.begin, special, user, effort, tokens);
    }
    return tokens;
  }

  // Tokens of a piece between added tokens that are looked for in the text as it is. The piece begins at `offset` of the text.
  void AddNormalized(std::string_view piece, size_t offset, bool special, const AddedTokens::UserParts* user, Regex::Effort& effort,
                     std::vector<int32_t>& tokens) const {
    size_t first = 0;
    NextCharacter(piece, first);
    const NormalizedText normalized = normalizer_.Apply({std::string(piece), first}, effort);
    const std::string_view whole = normalized.text;
    const AddedTokens::UserParts everything{{offset, offset + std::max(whole.size(), size_t{1})}};
    if (user != nullptr && whole != piece) {  // where the user's stretches lie is not known any more
      const bool has_user = std::any_of(user->begin(), user->end(), [&](const std::pair<size_t, size_t>& stretch) {
        return stretch.first < stretch.second && stretch.first < offset + piece.size() && offset < stretch.second;
      });
      if (has_user) user = &everything;
    }
    for (const AddedTokens::Part& part : added_.Cut(whole, true, special, user, offset)) {
      if (part.token >= 0) {
        tokens.push_back(part.token);
        continue;
      }
      if (part.begin >= part.end) continue;
      Words words;
      words.text = std::string(whole.substr(part.begin, part.end - part.begin));
      const bool is_first = offset == 0 && part.begin < normalized.first_bytes;
      words.words.push_back({0, words.text.size(), is_first, is_first ? std::min(normalized.first_bytes, part.end) - part.begin : 0});
      pre_tokenizer_.Run(words, effort);
      AddWords(words, user != nullptr ? "messages" : special ? nullptr : "prompt", tokens);
    }
  }

  // `plain` names a text that must not make special tokens in errors; null for one that may.
  void AddWords(const Words& words, const char* plain, std::vector<int32_t>& tokens) const {
    struct Range {
      size_t begin, end;
    };
    std::unordered_map<std::string_view, Range> known;  // words of this text and where their tokens are
    const bool caches = words.words.size() > 8;
    for (const Words::Word& word : words.words) {
      const std::string_view text = std::string_view(words.text).substr(word.begin, word.end - word.begin);
      const size_t begin = tokens.size();
      if (caches && text.size() <= kLongestCached) {
        const auto [entry, fresh] = known.try_emplace(text, Range{begin, begin});
        if (fresh) {
          bpe_.Encode(text, tokens);
          entry->second.end = tokens.size();
        } else {
          for (size_t i = entry->second.begin; i < entry->second.end; ++i) tokens.push_back(tokens[i]);
        }
      } else {
        bpe_.Encode(text, tokens);
      }
      if (plain == nullptr) continue;
      for (size_t i = begin; i < tokens.size(); ++i) {
        if (controls_.count(tokens[i]) == 0) continue;
        const std::string name = Brief(added_.Find(tokens[i])->content);
        UsageFault(std::string(plain) + ": got text that is the special token " + name + " to this tokenizer; leave it out");
      }
    }
  }

  Bpe bpe_;
  Normalizer normalizer_;
  PreTokenizer pre_tokenizer_;
  PostProcessor post_processor_;
  Decoder decoder_;
  AddedTokens added_;
  std::unordered_set<int32_t> skipped_;   // tokens without text where special tokens are skipped
  std::unordered_set<int32_t> controls_;  // special tokens that the text of a message must not make
};

}  // namespace

std::shared_ptr<const Tokenizer> Tokenizer::FromJson(std::string_view json, const std::string& path, const std::vector<int32_t>& end_ids) {
  try {
    return std::make_shared<const BpeTokenizer>(ReadTokenizerFile(json, path), path, end_ids);
  } catch (const Unsupported& unsupported) {
    throw Error(SOL_ERROR_TEXT, path + ": " + unsupported.what() + "; encode and decode on the host, and give token ids");
  }
}

}  // namespace sol_rt
