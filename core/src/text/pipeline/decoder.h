// Turns the texts of tokens into one text: the `decoder` of tokenizer.json.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/model/tokenizer_file.h"
#include "text/unicode/regex.h"

namespace sol_rt {

class Decoder {
 public:
  // Throws Unsupported for a step of another kind, or SOL_ERROR_BUNDLE for a damaged one.
  explicit Decoder(const Settings& file);

  std::string Run(std::vector<std::string> tokens) const;

 private:
  enum class Kind { kByteLevel, kMetaspace, kByteFallback, kFuse, kStrip, kReplace, kBpe };
  struct Step {
    Kind kind;
    std::string text;                      // that is stripped, replaced or put instead
    std::shared_ptr<const Regex> pattern;  // of kReplace
    uint32_t start = 0, stop = 0;          // of kStrip: most characters at both ends
    bool drops_first = false;              // of kMetaspace: no spaces in the first token
  };

  void Read(const Settings& settings, int depth);
  static void RunStep(const Step& step, std::vector<std::string>& tokens, Regex::Effort& effort);

  std::vector<Step> steps_;
  bool has_decoder_ = false;
};

}  // namespace sol_rt
