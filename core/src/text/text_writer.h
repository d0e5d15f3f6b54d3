// Turns generated tokens into pieces of text: streaming UTF-8 and stop strings.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/tokenizer.h"

namespace sol_rt {

class TextWriter {
 public:
  struct Piece {
    std::string text;   // that is now certain
    bool stop = false;  // whether an end token or a stop string ends the text here
  };

  // `tokenizer` may be null: pieces are then empty, and only end tokens stop.
  TextWriter(std::shared_ptr<const Tokenizer> tokenizer, const std::vector<int32_t>& prompt, std::vector<std::string> stop_strings,
             std::vector<int32_t> end_tokens);
  ~TextWriter();
  Piece Add(int32_t token);
  std::string Flush();  // the rest, where the text ends at the limit

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sol_rt
