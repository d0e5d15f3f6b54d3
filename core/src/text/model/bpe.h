// The model: byte-pair encoding. A word begins as characters, and the pair with the lowest rank is merged until none is left.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "text/model/tokenizer_file.h"
#include "text/model/vocabulary.h"

namespace sol_rt {

class Bpe {
 public:
  // Takes vocabulary and merges out of `file`. Throws SOL_ERROR_BUNDLE for merges of tokens that the vocabulary lacks, Unsupported for another model.
  Bpe(TokenizerFile& file, const std::string& path);

  // Appends the tokens of a word. Throws SOL_ERROR_BUNDLE if it needs the unknown token, which the vocabulary lacks.
  void Encode(std::string_view word, std::vector<int32_t>& tokens) const;

  const Vocabulary& vocabulary() const { return vocabulary_; }
  int32_t unknown() const { return unknown_; }  // token for what the vocabulary lacks, or Vocabulary::kNone

 private:
  struct Merge {
    uint32_t left = kFree, right = 0, rank = 0, made = 0;
  };
  struct Symbol {
    int32_t token, previous, next;  // the last two are indices, or -1
    bool merged;                    // into the one before
  };
  struct Candidate {  // of a merge
    uint32_t rank, place, made;
    bool operator<(const Candidate& other) const { return rank != other.rank ? rank > other.rank : place > other.place; }  // the least is on top
  };

  static constexpr uint32_t kFree = static_cast<uint32_t>(-1);

  void AddMerges(const TextList& merges, const std::string& path);
  const Merge* FindMerge(int32_t left, int32_t right) const;
  size_t MergeSlot(uint32_t left, uint32_t right) const;
  int32_t CharacterToken(std::string_view character, bool first, bool last) const;
  void Begin(std::string_view word, std::vector<Symbol>& symbols) const;
  void MergeAll(std::vector<Symbol>& symbols) const;

  Vocabulary vocabulary_;
  std::vector<Merge> merges_;                  // by hash of the pair; a power of two, at most half full
  std::array<int32_t, 256> byte_tokens_{};     // of <0x00> to <0xFF>, or kNone
  std::array<int32_t, 0x200> short_tokens_{};  // of characters up to U+01FF, or kNone
  std::string path_, prefix_, suffix_, unknown_text_;
  bool has_unknown_ = false, fuse_unknown_ = false, byte_fallback_ = false, ignore_merges_ = false;
  int32_t unknown_ = Vocabulary::kNone;
};

}  // namespace sol_rt
