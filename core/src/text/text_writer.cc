#include "text/text_writer.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "text/stream/stop_strings.h"
#include "text/stream/text_stream.h"

namespace sol_rt {

struct TextWriter::State {
  std::optional<TextStream> stream;  // none without a tokenizer
  StopStrings stop;
  std::vector<int32_t> end_tokens;
};

TextWriter::TextWriter(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& prompt, std::vector<std::string> stop_strings,
                       std::vector<int32_t> end_tokens)
    : state_(new State{std::nullopt, StopStrings(std::move(stop_strings)), std::move(end_tokens)}) {
  if (tokenizer) state_->stream.emplace(std::move(tokenizer), prompt);
}

TextWriter::~TextWriter() = default;

TextWriter::Piece TextWriter::Add(int32_t token) {
  if (std::find(state_->end_tokens.begin(), state_->end_tokens.end(), token) != state_->end_tokens.end()) return {Flush(), true};
  if (!state_->stream) return {};
  auto [text, stopped] = state_->stop.Feed(state_->stream->Add(token));
  return {std::move(text), stopped};
}

std::string TextWriter::Flush() {
  if (!state_->stream) return "";
  auto [text, stopped] = state_->stop.Feed(state_->stream->Flush());
  return stopped ? text : text + state_->stop.Flush();
}

}  // namespace sol_rt
