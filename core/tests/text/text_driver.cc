// Answers questions about a tokenizer, so that Python can compare the answers with its own: `text_driver TOKENIZER.JSON [END_ID ...]`.
//
// Each line of stdin is a JSON object with `op`, each line of stdout the answer: `{"ok": ...}` or `{"error": code, "message": text}`. The first answer says
// how the tokenizer was read.
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/error.h"
#include "text/chat_segments.h"
#include "text/stream/stop_strings.h"
#include "text/stream/text_stream.h"
#include "text/text_writer.h"
#include "text/tokenizer.h"

namespace {

using nlohmann::json;

std::string ReadFile(const char* path) {
  std::ifstream file(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

// Bytes that are no UTF-8 come as a list of numbers.
std::string Bytes(const json& value) {
  if (value.is_string()) return value.get<std::string>();
  std::string bytes;
  for (int byte : value.get<std::vector<int>>()) bytes.push_back(static_cast<char>(byte));
  return bytes;
}

std::vector<sol_rt::ChatMessage> Messages(const json& value) {
  std::vector<sol_rt::ChatMessage> messages;
  for (const json& message : value) messages.push_back({message.at("role").get<std::string>(), Bytes(message.at("content"))});
  return messages;
}

json Answer(const std::shared_ptr<const sol_rt::Tokenizer>& tokenizer, const json& question) {
  const std::string op = question.at("op").get<std::string>();
  json answer = json::array();
  if (op == "encode") {
    for (const json& text : question.at("texts")) answer.push_back(tokenizer->Encode(Bytes(text), question.at("add"), question.at("parse")));
  } else if (op == "rendered") {
    answer = tokenizer->EncodeRendered(Bytes(question.at("text")), question.at("user").get<std::vector<std::pair<size_t, size_t>>>());
  } else if (op == "decode") {
    for (const json& tokens : question.at("tokens")) {
      const std::vector<int32_t> ids = tokens.get<std::vector<int32_t>>();
      answer.push_back(tokenizer->Decode(ids.data(), ids.size(), question.at("skip")));
    }
  } else if (op == "stream") {
    sol_rt::TextStream stream(tokenizer, question.at("context").get<std::vector<int32_t>>(), question.at("skip"));
    for (int32_t token : question.at("tokens").get<std::vector<int32_t>>()) answer.push_back(stream.Add(token));
    answer.push_back(stream.Flush());
  } else if (op == "stop") {
    sol_rt::StopStrings stop(question.at("strings").get<std::vector<std::string>>());
    for (const json& text : question.at("texts")) {
      const auto [shown, stopped] = stop.Feed(text.get<std::string>());
      answer.push_back(json::array({shown, stopped}));
    }
    answer.push_back(stop.Flush());
  } else if (op == "write") {
    sol_rt::TextWriter writer(tokenizer, question.at("prompt").get<std::vector<int32_t>>(), question.at("strings").get<std::vector<std::string>>(),
                              question.at("end").get<std::vector<int32_t>>());
    for (int32_t token : question.at("tokens").get<std::vector<int32_t>>()) {
      const sol_rt::TextWriter::Piece piece = writer.Add(token);
      answer.push_back(json::array({piece.text, piece.stop}));
      if (piece.stop) return answer;
    }
    answer.push_back(writer.Flush());
  } else if (op == "chat") {
    answer = sol_rt::ChatSegments::FromJson(question.at("segments").get<std::string>(), "chat_segments.json", tokenizer)
                 ->Encode(Messages(question.at("messages")));
  } else if (op == "token_id") {
    answer = tokenizer->TokenId(question.at("token").get<std::string>()).value_or(-1);
  } else if (op == "last_id") {
    answer = tokenizer->LastId();
  } else if (op == "size") {
    answer = tokenizer->Size();
  }
  return answer;
}

template <class Ask>
void Write(Ask ask) {
  json line;
  try {
    line["ok"] = ask();
  } catch (const sol_rt::Error& error) {
    line["error"] = error.code();
    line["message"] = error.what();
  }
  std::cout << line.dump(-1, ' ', true) << std::endl;
}

}  // namespace

int main(int count, char** arguments) {
  if (count < 2) return 2;
  std::vector<int32_t> end_ids;
  for (int i = 2; i < count; ++i) end_ids.push_back(std::atoi(arguments[i]));
  std::shared_ptr<const sol_rt::Tokenizer> tokenizer;
  Write([&] {
    tokenizer = sol_rt::Tokenizer::FromJson(ReadFile(arguments[1]), arguments[1], end_ids);
    return json(true);
  });
  if (!tokenizer) return 1;
  for (std::string line; std::getline(std::cin, line);) {
    Write([&] { return Answer(tokenizer, json::parse(line)); });
  }
  return 0;
}
