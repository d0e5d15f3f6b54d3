// Renders a conversation from the segments that the exporter took from the chat template (`chat_segments.json`, docs/reference/bundle-details.md section 7).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/tokenizer.h"

namespace sol_rt {

struct ChatMessage {
  std::string role, content;
};

// Threads may share one.
class ChatSegments {
 public:
  // Throws SOL_ERROR_BUNDLE for a damaged file.
  static std::shared_ptr<const ChatSegments> FromJson(std::string_view json, const std::string& path, std::shared_ptr<const Tokenizer> tokenizer);
  virtual ~ChatSegments() = default;
  // Tokens of the conversation and of the beginning of an answer; the content of messages is text, also where it says special tokens. Throws
  // SOL_ERROR_USAGE for roles or an order that the segments do not have, SOL_ERROR_TEXT for invalid UTF-8.
  virtual std::vector<int32_t> Encode(const std::vector<ChatMessage>& messages) const = 0;
};

}  // namespace sol_rt
