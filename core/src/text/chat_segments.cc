#include "text/chat_segments.h"

#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <utility>

#include "base/error.h"
#include "text/model/tokenizer_file.h"
#include "text/unicode/character.h"
#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

constexpr size_t kLargestFile = size_t{1} << 20;
constexpr size_t kDeepest = 4;  // objects within one another
constexpr size_t kMostAdded = size_t{1} << 18, kMostRepeated = 4;  // bytes of a prompt, and times its messages', as template_process.py
constexpr uint32_t kVersion = 1;
constexpr size_t kRoles = 3;
constexpr std::array<const char*, kRoles> kNames = {"system", "user", "assistant"};
constexpr size_t kStart = kRoles, kAnswer = kRoles;  // what precedes the first message, and what follows the last one
constexpr const char* kHint = "render the chat template on the host and encode its text";

std::optional<size_t> RoleOf(const std::string& name) {
  for (size_t role = 0; role < kRoles; ++role) {
    if (name == kNames[role]) return role;
  }
  return std::nullopt;
}

class Segments : public ChatSegments {
 public:
  Segments(const Settings& file, std::shared_ptr<const Tokenizer> tokenizer) : tokenizer_(std::move(tokenizer)) {
    if (file.Number("format_version") != kVersion) file.Fail("format_version", std::to_string(file.Number("format_version")), "1");
    trimmed_ = Roles(file, "trimmed");
    filled_ = Roles(file, "filled");
    const Settings between = Object(file, "between");
    for (size_t before = 0; before <= kRoles; ++before) {
      const char* const name = before == kStart ? "start" : kNames[before];
      if (!between.Has(name)) continue;
      const Settings row = Object(between, name);
      for (size_t after = 0; after <= kRoles; ++after) {
        const char* const next = after == kAnswer ? "answer" : kNames[after];
        if (row.Has(next)) between_[before][after] = row.Text(next);
      }
    }
  }

  std::vector<int32_t> Encode(const std::vector<ChatMessage>& messages) const override {
    std::string text;
    std::vector<std::pair<size_t, size_t>> user;
    size_t before = kStart, most = kMostAdded;
    for (const ChatMessage& message : messages) most += kMostRepeated * (message.role.size() + message.content.size());
    for (const ChatMessage& message : messages) {
      const std::optional<size_t> role = RoleOf(message.role);
      if (!role) UsageFault("messages: got the role " + Brief(message.role) + ", expected system, user or assistant; " + kHint);
      if (!IsValidUtf8(message.content)) throw Error(SOL_ERROR_TEXT, "messages: not valid Unicode text; give it as UTF-8");
      if (filled_[*role] && message.content.empty()) {
        UsageFault("messages: got an empty message of the " + message.role + ", which the chat template does not render as others; leave it out");
      }
      text += Between(before, *role);
      const size_t begin = text.size();
      text += trimmed_[*role] ? PythonStripped(message.content) : std::string_view(message.content);
      user.emplace_back(begin, text.size());
      before = *role;
      if (text.size() > most) {
        throw Error(SOL_ERROR_TEXT, "messages: the bundle's chat segments add more than a conversation has; " + std::string(kHint));
      }
    }
    text += Between(before, kAnswer);
    return tokenizer_->EncodeRendered(text, user);
  }

 private:
  static std::array<bool, kRoles> Roles(const Settings& file, const char* list) {
    std::array<bool, kRoles> roles{};
    for (const Settings& name : file.Items(list)) {
      const std::optional<size_t> role = name.value().is_string() ? RoleOf(name.value().get<std::string>()) : std::nullopt;
      if (!role) file.Fail(list, name.value().dump(-1, ' ', true).substr(0, 60), "names of roles");
      roles[*role] = true;
    }
    return roles;
  }

  static Settings Object(const Settings& parent, const char* name) {
    const Settings field = parent.At(name);
    if (!field.value().is_object()) parent.Fail(name, field.value().type_name(), "an object");
    return field;
  }

  const std::string& Between(size_t before, size_t after) const {
    const std::optional<std::string>& text = between_[before][after];
    if (text) return *text;
    const std::string what = after == kAnswer ? "an answer" : std::string("a message of the ") + kNames[after];
    const std::string where = before == kStart ? " at the start" : std::string(" after one of the ") + kNames[before];
    UsageFault("messages: got " + what + where + ", which the bundle's chat segments do not have; " + kHint);
  }

  std::shared_ptr<const Tokenizer> tokenizer_;
  std::array<bool, kRoles> trimmed_{};  // roles whose content loses the spaces at both ends
  std::array<bool, kRoles> filled_{};   // roles whose content must not be empty
  // text between two messages; the last index is start or answer
  std::array<std::array<std::optional<std::string>, kRoles + 1>, kRoles + 1> between_;
};

nlohmann::json Parsed(std::string_view json, const std::string& path) {
  if (json.size() > kLargestFile) BundleFault(path, "", std::to_string(json.size()) + " bytes", "at most " + std::to_string(kLargestFile));
  try {
    const nlohmann::json::parser_callback_t bounded = [](int depth, nlohmann::json::parse_event_t, nlohmann::json&) {
      return static_cast<size_t>(depth) <= kDeepest;  // drops what lies deeper
    };
    nlohmann::json value = nlohmann::json::parse(json, bounded);
    if (value.is_object()) return value;
  } catch (const nlohmann::json::exception&) {
  }
  BundleFault(path, "", "unreadable JSON", "a JSON object");
}

}  // namespace

std::shared_ptr<const ChatSegments> ChatSegments::FromJson(std::string_view json, const std::string& path,
                                                           std::shared_ptr<const Tokenizer> tokenizer) {
  const nlohmann::json value = Parsed(json, path);
  return std::make_shared<const Segments>(Settings(value, path, ""), std::move(tokenizer));
}

}  // namespace sol_rt
