#include "text/stream/text_stream.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

constexpr size_t kUtf8Length = 4;  // bytes of the longest character
constexpr size_t kContext = 6;     // prompt tokens that are enough for the decoder to place a leading space

bool EndsWith(std::string_view text, std::string_view end) { return text.size() >= end.size() && text.substr(text.size() - end.size()) == end; }

}  // namespace

TextStream::TextStream(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& context, bool skip_special)
    : tokenizer_(std::move(tokenizer)), skip_special_(skip_special) {
  // the fewest last tokens of the context whose text begins at the boundary of a character
  for (size_t length = 1; length <= std::min(kContext, context.size()); ++length) {
    tokens_.assign(context.end() - static_cast<std::ptrdiff_t>(length), context.end());
    const std::string text = Decoded();
    if (!text.empty() && text.compare(0, kReplacement.size(), kReplacement) != 0) break;
    tokens_.clear();
  }
  given_ = CountCharacters(Decoded());
  fresh_ = tokens_.size();
}

std::string TextStream::Decoded() const { return tokenizer_->Decode(tokens_.data(), tokens_.size(), skip_special_); }

std::string TextStream::Add(int32_t token) {
  tokens_.push_back(token);
  const std::string text = Decoded();
  if (!EndsWith(text, kReplacement)) return GiveOut(text);
  if (tokens_.size() - fresh_ <= kUtf8Length) return "";
  // more tokens than one character has bytes: only the last 3 replacement characters may still change
  const size_t begin = OffsetOfCharacter(text, given_);
  size_t end = text.size();
  for (size_t i = 0; i + 1 < kUtf8Length && end > begin && EndsWith(std::string_view(text).substr(0, end), kReplacement); ++i) {
    end -= kReplacement.size();
  }
  given_ = std::max(given_, CountCharacters(std::string_view(text).substr(0, end)));
  return end > begin ? text.substr(begin, end - begin) : std::string();
}

std::string TextStream::Flush() { return GiveOut(Decoded()); }

std::string TextStream::GiveOut(const std::string& text) {
  std::string piece = text.substr(OffsetOfCharacter(text, given_));
  if (!piece.empty()) {
    tokens_.erase(tokens_.begin(), tokens_.begin() + static_cast<std::ptrdiff_t>(fresh_));
    fresh_ = tokens_.size();
    given_ = CountCharacters(Decoded());
  }
  return piece;
}

}  // namespace sol_rt
