// The settings of a generation, under Hugging Face's names: how tokens are picked and when the text ends.
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sol_rt {


// A sampling setting that is 1, 0 or absent changes nothing.
struct GenerationConfig {
  int64_t max_new_tokens = 256;
  bool do_sample = false;
  double temperature = 1.0;
  int64_t top_k = 50;  // 0 for all
  double top_p = 1.0;
  std::optional<double> min_p;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::vector<std::pair<int64_t, double>> logit_bias;  // by token
  int64_t top_logprobs = 0;
  std::vector<std::string> stop_strings;
  std::optional<uint64_t> seed;
  std::vector<int64_t> eos_token_id;

  // True if the likeliest token is always taken.
  bool greedy() const { return !do_sample || temperature == 0; }

  // Changes a setting; null leaves it as it is. Throws SOL_ERROR_USAGE for an unknown name and for a value out of range.
  void Set(const std::string& name, const nlohmann::json& value);

  // Applies a file `generation_config.json`. Keys that are no settings here are ignored. Throws SOL_ERROR_BUNDLE for values that cannot be used; `path` is
  // for the message.
  void ApplyFile(std::string_view content, const std::string& path);

  // Throws SOL_ERROR_USAGE if `logit_bias` names a token that the vocabulary lacks.
  void CheckVocabulary(int32_t vocab_size) const;

  // Every setting but those on which no token depends, in the order of a trace's header.
  nlohmann::ordered_json ForTrace() const;
};

}  // namespace sol_rt
