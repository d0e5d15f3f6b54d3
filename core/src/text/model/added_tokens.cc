#include "text/model/added_tokens.h"

#include <algorithm>
#include <optional>

#include "text/pipeline/normalizer.h"
#include "text/unicode/character.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kLongest = 1024;  // bytes of one token's text: a search looks so far ahead at every place

bool WordBefore(std::string_view text, size_t at) { return at > 0 && IsWord(PreviousCharacter(text, at)); }
bool WordAfter(std::string_view text, size_t at) { return at < text.size() && IsWord(NextCharacter(text, at)); }

// Place where the spaces before `at` begin, at `least` or later.
size_t BeforeSpaces(std::string_view text, size_t at, size_t least) {
  while (at > least) {
    size_t before = at;
    if (!IsWhitespace(PreviousCharacter(text, before))) break;
    at = before;
  }
  return at;
}

size_t BehindSpaces(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (!IsWhitespace(NextCharacter(text, next))) break;
    at = next;
  }
  return at;
}

bool Touches(const AddedTokens::UserParts& parts, size_t begin, size_t end) {
  const auto after = std::upper_bound(parts.begin(), parts.end(), begin,
                                      [](size_t at, const std::pair<size_t, size_t>& part) { return at < part.second; });
  return after != parts.end() && after->first < end && after->first < after->second;
}

}  // namespace

void TextMatcher::Add(std::string_view text, int32_t value) {
  if (text.empty()) return;
  begins_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (char byte : text) {
    const auto [child, made] = children_.try_emplace(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(byte), nodes_);
    if (made) ++nodes_;
    node = child->second;
  }
  values_[node] = value;
}

void TextMatcher::At(std::string_view text, size_t at, std::vector<Found>& found) const {
  found.clear();
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    const auto child = children_.find(static_cast<uint64_t>(node) << 8 | static_cast<uint8_t>(text[i]));
    if (child == children_.end()) return;
    node = child->second;
    if (const auto value = values_.find(node); value != values_.end()) found.push_back({i + 1, value->second});
  }
}

AddedTokens::AddedTokens(const Settings& file, const Vocabulary& vocabulary, const Normalizer& normalizer, const std::vector<int32_t>& end_ids) {
  uint32_t next_id = static_cast<uint32_t>(vocabulary.size());
  Regex::Effort effort(0);  // of all tokens together
  if (file.Has("added_tokens")) {
    for (const Settings& item : file.Items("added_tokens")) {
      item.Number("id");  // the model's vocabulary and the order of the tokens decide, as in `tokenizers`
      Token token{item.Text("content"), "",  item.Flag("single_word"), item.Flag("lstrip"),
                  item.Flag("rstrip"), item.Flag("normalized"), item.Flag("special")};
      Add(std::move(token), vocabulary, normalizer, next_id, effort);
    }
  }
  for (int32_t id : end_ids) {
    const auto found = tokens_.find(id);
    if (found == tokens_.end()) continue;
    Token token = found->second;
    token.special = true;
    Add(std::move(token), vocabulary, normalizer, next_id, effort);
  }
  std::vector<int32_t> order;
  for (const auto& [id, token] : tokens_) order.push_back(id);
  std::sort(order.begin(), order.end());
  for (int32_t id : order) {
    const Token& token = tokens_.at(id);
    (token.normalized ? normalized_ : plain_).Add(token.normalized ? token.written : token.content, id);
  }
}

void AddedTokens::Add(Token token, const Vocabulary& vocabulary, const Normalizer& normalizer, uint32_t& next_id, Regex::Effort& effort) {
  if (token.content.empty()) return;
  int32_t id = Id(token.content);
  if (id == Vocabulary::kNone) id = vocabulary.Find(token.content);
  if (id == Vocabulary::kNone) {
    if (next_id > Vocabulary::kLargestId) throw Unsupported("too many added tokens", "ids up to " + std::to_string(Vocabulary::kLargestId));
    id = static_cast<int32_t>(next_id++);
  }
  token.written = token.normalized ? normalizer.Apply(token.content, effort) : token.content;
  if (const size_t size = token.written.size(); size > kLongest) {  // here, before there are many of them
    throw Unsupported("an added token of " + std::to_string(size) + " bytes", "at most " + std::to_string(kLongest));
  }
  if (token.special) special_.insert(token.content);
  ids_[token.content] = id;
  tokens_[id] = std::move(token);
}

std::vector<AddedTokens::Part> AddedTokens::Cut(std::string_view text, bool normalized, bool special, const UserParts* user, size_t offset) const {
  std::vector<Part> parts;
  const TextMatcher& matcher = normalized ? normalized_ : plain_;
  std::vector<TextMatcher::Found> found;
  size_t covered = 0;     // how far the parts reach
  size_t spaces_end = 0;  // of the spaces after a token
  for (size_t at = 0; at < text.size() && !matcher.empty();) {
    if (!matcher.MayBeginWith(text[at])) {
      ++at;
      continue;
    }
    matcher.At(text, at, found);
    // in a text with user parts a special token that touches one does not count at all; elsewhere it is skipped as a whole
    while (user != nullptr && !found.empty() && IsSpecial(tokens_.at(found.back().value).content) &&
           Touches(*user, offset + at, offset + found.back().end)) {
      found.pop_back();
    }
    if (found.empty()) {
      ++at;
      continue;
    }
    size_t begin = at, end = found.back().end;
    const int32_t id = found.back().value;
    const Token& token = tokens_.at(id);
    at = end;
    if (!special && IsSpecial(token.content)) continue;
    if (token.single_word && (WordBefore(text, begin) || WordAfter(text, end))) continue;
    if (token.strips_left) begin = std::max(BeforeSpaces(text, begin, covered), covered);
    if (token.strips_right) end = spaces_end = end < spaces_end ? spaces_end : BehindSpaces(text, end);
    if (covered < begin) parts.push_back({covered, begin, Vocabulary::kNone});
    if (begin < end) parts.push_back({begin, end, id});  // else the token before took it along with its spaces
    covered = end;
  }
  if (covered != text.size()) parts.push_back({covered, text.size(), Vocabulary::kNone});
  return parts;
}

const AddedTokens::Token* AddedTokens::Find(int32_t id) const {
  const auto found = tokens_.find(id);
  return found == tokens_.end() ? nullptr : &found->second;
}

int32_t AddedTokens::Id(std::string_view content) const {
  const auto found = ids_.find(std::string(content));
  return found == ids_.end() ? Vocabulary::kNone : found->second;
}

int32_t AddedTokens::LastId() const {
  int32_t last = Vocabulary::kNone;
  for (const auto& [content, id] : ids_) last = std::max(last, id);
  return last;
}

size_t AddedTokens::CountBeside(const Vocabulary& vocabulary) const {
  size_t count = 0;
  for (const auto& [content, id] : ids_) count += vocabulary.Find(content) == Vocabulary::kNone;
  return count;
}

}  // namespace sol_rt
