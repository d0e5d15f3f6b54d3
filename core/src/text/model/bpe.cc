#include "text/model/bpe.h"

#include <algorithm>
#include <cstdio>

#include "base/error.h"
#include "text/unicode/utf8.h"
#include "text/unsupported.h"

namespace sol_rt {
namespace {

constexpr size_t kMostProbes = 4096;  // merges that need more were made to take long
constexpr size_t kLongestMark = 64;   // bytes of prefix and suffix: where bytes stand in for a character, every character gets them

}  // namespace

Bpe::Bpe(TokenizerFile& file, const std::string& path) : path_(path) {
  const Settings model = Settings(file.settings, path, "").At("model");
  if (model.Has("type")) {
    const std::string type = model.Type();
    if (type != "BPE") throw Unsupported("a model of type " + Brief(type), "BPE");
  }
  if (!file.has_vocabulary || !file.has_merges) BundleFault(path, "model", "no vocab or no merges", "both");
  if (model.Has("dropout")) {
    const nlohmann::json& dropout = model.At("dropout").value();
    if (!dropout.is_number() || dropout.get<double>() != 0.0) {
      throw Unsupported("a model with dropout", "none: the same text must give the same tokens");
    }
  }
  if (model.Has("continuing_subword_prefix")) prefix_ = model.Text("continuing_subword_prefix");
  if (model.Has("end_of_word_suffix")) suffix_ = model.Text("end_of_word_suffix");
  if (std::max(prefix_.size(), suffix_.size()) > kLongestMark) {
    throw Unsupported("a model with a long prefix or suffix", "at most " + std::to_string(kLongestMark) + " bytes");
  }
  fuse_unknown_ = model.Flag("fuse_unk", false);
  byte_fallback_ = model.Flag("byte_fallback", false);
  ignore_merges_ = model.Flag("ignore_merges", false);
  vocabulary_ = std::move(file.vocabulary);
  if (model.Has("unk_token")) {
    has_unknown_ = true;
    unknown_text_ = model.Text("unk_token");
    unknown_ = vocabulary_.Find(unknown_text_);
  }
  AddMerges(file.merges, path);
  file.merges = TextList();
  for (size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    char text[8];
    std::snprintf(text, sizeof text, "<0x%02X>", static_cast<unsigned>(byte));
    byte_tokens_[byte] = vocabulary_.Find(text);
  }
  for (uint32_t character = 0; character < short_tokens_.size(); ++character) {
    std::string text;
    AppendCharacter(text, character);
    short_tokens_[character] = vocabulary_.Find(text);
  }
}

void Bpe::AddMerges(const TextList& merges, const std::string& path) {
  size_t slots = 1024;
  while (slots < merges.size()) slots *= 2;  // two texts a merge, so at most half of the slots are taken
  merges_.assign(slots, Merge());
  std::string joined;
  for (size_t i = 0; i + 1 < merges.size(); i += 2) {
    const std::string_view left = merges[i], right = merges[i + 1];
    const int32_t left_token = vocabulary_.Find(left), right_token = vocabulary_.Find(right);
    if (left_token < 0 || right_token < 0) {
      BundleFault(path, "model.merges", "the token " + Brief(std::string(left_token < 0 ? left : right)), "tokens of the vocabulary");
    }
    joined = left;
    if (right.size() >= prefix_.size()) joined += right.substr(prefix_.size());
    const int32_t made = vocabulary_.Find(joined);
    if (made < 0) BundleFault(path, "model.merges", "the token " + Brief(joined), "tokens of the vocabulary");
    Merge& merge = merges_[MergeSlot(static_cast<uint32_t>(left_token), static_cast<uint32_t>(right_token))];
    merge = {static_cast<uint32_t>(left_token), static_cast<uint32_t>(right_token), static_cast<uint32_t>(i / 2), static_cast<uint32_t>(made)};
  }
}

size_t Bpe::MergeSlot(uint32_t left, uint32_t right) const {
  uint64_t hash = (static_cast<uint64_t>(left) << 32 | right) * 0x9E3779B97F4A7C15u;
  hash ^= hash >> 29;
  const size_t mask = merges_.size() - 1;
  size_t slot = static_cast<size_t>(hash) & mask;
  for (size_t probes = 0; merges_[slot].left != kFree && (merges_[slot].left != left || merges_[slot].right != right); slot = (slot + 1) & mask) {
    if (++probes > kMostProbes) throw Unsupported("merges that hash alike", "usual ones");
  }
  return slot;
}

const Bpe::Merge* Bpe::FindMerge(int32_t left, int32_t right) const {
  const Merge& merge = merges_[MergeSlot(static_cast<uint32_t>(left), static_cast<uint32_t>(right))];
  return merge.left == kFree ? nullptr : &merge;
}

int32_t Bpe::CharacterToken(std::string_view character, bool first, bool last) const {
  if ((first || prefix_.empty()) && (!last || suffix_.empty())) {
    if (character.size() <= 2) {
      size_t at = 0;
      const uint32_t code = NextCharacter(character, at);
      if (code < short_tokens_.size()) return short_tokens_[code];
    }
    return vocabulary_.Find(character);
  }
  std::string text;
  if (!first) text += prefix_;
  text += character;
  if (last) text += suffix_;
  return vocabulary_.Find(text);
}

void Bpe::Begin(std::string_view word, std::vector<Symbol>& symbols) const {
  symbols.clear();
  const auto add = [&](int32_t token) {
    const int32_t index = static_cast<int32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({token, index - 1, -1, false});
  };
  bool pending = false;  // an unknown token that the next one may be fused with
  for (size_t at = 0; at < word.size();) {
    const size_t begin = at;
    NextCharacter(word, at);
    const std::string_view character = word.substr(begin, at - begin);
    const bool first = begin == 0, last = at == word.size();
    const int32_t token = CharacterToken(character, first, last);
    if (token >= 0) {
      if (pending) add(unknown_);
      pending = false;
      add(token);
      continue;
    }
    if (byte_fallback_) {
      const std::string text = (first ? "" : prefix_) + std::string(character) + (last ? suffix_ : "");
      const auto byte_token = [&](char byte) { return byte_tokens_[static_cast<uint8_t>(byte)]; };
      if (std::all_of(text.begin(), text.end(), [&](char byte) { return byte_token(byte) >= 0; })) {
        for (char byte : text) add(byte_token(byte));  // a pending unknown token stays pending, as in `tokenizers`
        continue;
      }
    }
    if (!has_unknown_) continue;  // the character is dropped
    if (unknown_ < 0) BundleFault(path_, "model.unk_token", Brief(unknown_text_), "a token of the vocabulary");
    if (pending && !fuse_unknown_) add(unknown_);
    pending = true;
  }
  if (pending) add(unknown_);
}

void Bpe::MergeAll(std::vector<Symbol>& symbols) const {
  std::vector<Candidate> queue;  // a heap
  queue.reserve(symbols.size());
  const auto propose = [&](int32_t left, int32_t right) {
    const Merge* const merge = FindMerge(symbols[static_cast<size_t>(left)].token, symbols[static_cast<size_t>(right)].token);
    if (merge == nullptr) return false;
    queue.push_back({merge->rank, static_cast<uint32_t>(left), merge->made});
    return true;
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) propose(static_cast<int32_t>(i), static_cast<int32_t>(i + 1));
  std::make_heap(queue.begin(), queue.end());
  while (!queue.empty()) {
    std::pop_heap(queue.begin(), queue.end());
    const Candidate top = queue.back();
    queue.pop_back();
    Symbol& left = symbols[top.place];
    if (left.merged || left.next < 0) continue;
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    const Merge* const merge = FindMerge(left.token, right.token);
    if (merge == nullptr || merge->made != top.made) continue;  // one of the two was merged with another meanwhile
    left.token = static_cast<int32_t>(top.made);
    left.next = right.next;
    right.merged = true;
    const int32_t place = static_cast<int32_t>(top.place);
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = place;
    if (left.previous >= 0 && propose(left.previous, place)) std::push_heap(queue.begin(), queue.end());
    if (left.next >= 0 && propose(place, left.next)) std::push_heap(queue.begin(), queue.end());
  }
}

void Bpe::Encode(std::string_view word, std::vector<int32_t>& tokens) const {
  if (ignore_merges_) {
    const int32_t token = vocabulary_.Find(word);
    if (token >= 0) {
      tokens.push_back(token);
      return;
    }
  }
  std::vector<Symbol> symbols;
  symbols.reserve(word.size());
  Begin(word, symbols);
  MergeAll(symbols);
  for (const Symbol& symbol : symbols) {
    if (!symbol.merged) tokens.push_back(symbol.token);
  }
}

}  // namespace sol_rt
