// Text of the C interface: tokens, and conversations.
#include <string_view>

#include "api/border.h"
#include "api/handles.h"

using sol_rt::Guard;

namespace {

const sol_rt::Tokenizer& TokenizerOf(const sol_model* model, const char* function) {
  sol_rt::RequireHandle(model, function);
  if (!model->model->tokenizer()) throw sol_rt::Error(SOL_ERROR_TEXT, model->model->no_tokenizer());
  return *model->model->tokenizer();
}

}  // namespace

extern "C" {

sol_error* sol_model_encode(const sol_model* model, const char* text, size_t length, uint32_t flags, int32_t* tokens, size_t capacity, size_t* count) {
  return Guard([&] {
    const sol_rt::Tokenizer& tokenizer = TokenizerOf(model, "sol_model_encode");
    sol_rt::RequirePointer(count, "sol_model_encode: count");
    if (length > 0) sol_rt::RequirePointer(text, "sol_model_encode: text");
    constexpr uint32_t kKnown = SOL_ENCODE_ADD_SPECIAL | SOL_ENCODE_PARSE_SPECIAL;
    if ((flags & ~kKnown) != 0) sol_rt::UsageFault("sol_model_encode: flags: got " + std::to_string(flags) + ", expected SOL_ENCODE_ flags");
    const std::string_view view = length > 0 ? std::string_view(text, length) : std::string_view();
    const std::vector<int32_t> made = tokenizer.Encode(view, (flags & SOL_ENCODE_ADD_SPECIAL) != 0, (flags & SOL_ENCODE_PARSE_SPECIAL) != 0);
    sol_rt::FillArray(made.data(), made.size(), tokens, capacity, count);
  });
}

sol_error* sol_model_encode_rendered(const sol_model* model, const char* text, size_t length, const size_t* user, size_t num_user, int32_t* tokens,
                                     size_t capacity, size_t* count) {
  return Guard([&] {
    const sol_rt::Tokenizer& tokenizer = TokenizerOf(model, "sol_model_encode_rendered");
    sol_rt::RequirePointer(count, "sol_model_encode_rendered: count");
    if (length > 0) sol_rt::RequirePointer(text, "sol_model_encode_rendered: text");
    if (num_user > 0) sol_rt::RequirePointer(user, "sol_model_encode_rendered: user");
    std::vector<std::pair<size_t, size_t>> stretches;
    size_t end = 0;
    for (size_t i = 0; i < num_user; ++i) {
      stretches.emplace_back(user[2 * i], user[2 * i + 1]);
      if (stretches[i].first < end || stretches[i].second < stretches[i].first || stretches[i].second > length) {
        sol_rt::UsageFault("sol_model_encode_rendered: user: got bytes " + std::to_string(stretches[i].first) + " to " + std::to_string(stretches[i].second) +
                           " at place " + std::to_string(i) + ", expected stretches in order within " + std::to_string(length) + " bytes");
      }
      end = stretches[i].second;
    }
    const std::vector<int32_t> made = tokenizer.EncodeRendered(length > 0 ? std::string_view(text, length) : std::string_view(), stretches);
    sol_rt::FillArray(made.data(), made.size(), tokens, capacity, count);
  });
}

sol_error* sol_model_decode(const sol_model* model, const int32_t* tokens, size_t count, int32_t skip_special, char* text, size_t capacity, size_t* length) {
  return Guard([&] {
    const sol_rt::Tokenizer& tokenizer = TokenizerOf(model, "sol_model_decode");
    sol_rt::RequirePointer(length, "sol_model_decode: length");
    if (count > 0) sol_rt::RequirePointer(tokens, "sol_model_decode: tokens");
    const std::string made = tokenizer.Decode(tokens, count, skip_special != 0);
    sol_rt::FillArray(made.data(), made.size(), text, capacity, length);
  });
}

sol_error* sol_model_encode_chat(const sol_model* model, const sol_message* messages, size_t num_messages, int32_t* tokens, size_t capacity, size_t* count) {
  return Guard([&] {
    TokenizerOf(model, "sol_model_encode_chat");
    sol_rt::RequirePointer(count, "sol_model_encode_chat: count");
    if (num_messages > 0) sol_rt::RequirePointer(messages, "sol_model_encode_chat: messages");
    if (!model->model->chat()) {
      throw sol_rt::Error(SOL_ERROR_TEXT, model->model->bundle().path() +
                                              ": got no chat segments, expected chat_segments.json; render the chat template in the host, or export again");
    }
    std::vector<sol_rt::ChatMessage> given;
    for (size_t i = 0; i < num_messages; ++i) {
      sol_rt::RequirePointer(messages[i].role, "sol_message: role");
      sol_rt::RequirePointer(messages[i].content, "sol_message: content");
      given.push_back({messages[i].role, messages[i].content});
    }
    const std::vector<int32_t> made = model->model->chat()->Encode(given);
    sol_rt::FillArray(made.data(), made.size(), tokens, capacity, count);
  });
}

}  // extern "C"
