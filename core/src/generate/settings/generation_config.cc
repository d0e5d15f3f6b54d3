#include "generate/settings/generation_config.h"

#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/text/json.h"
#include "generate/settings/json_repr.h"

namespace sol_rt {
namespace {

using nlohmann::json;

constexpr double kPenaltyLimit = 2.0;  // as in OpenAI's API, like the two below
constexpr double kBiasLimit = 100.0;
constexpr int64_t kTopLogprobsLimit = 20;
constexpr const char* kNames[] = {"max_new_tokens", "do_sample",          "temperature",      "top_k",             "top_p",
                                  "min_p",          "repetition_penalty", "presence_penalty", "frequency_penalty", "logit_bias",
                                  "top_logprobs",   "stop_strings",       "seed",             "eos_token_id"};

bool IsKnown(const std::string& name) {
  for (const char* known : kNames) {
    if (name == known) return true;
  }
  return false;
}

[[noreturn]] void Refuse(const std::string& name, const json& value, const std::string& expected) {
  UsageFault("generation setting " + name + ": got " + BriefJson(value) + ", expected " + expected);
}

std::optional<int64_t> WholeNumber(const json& value, int64_t low) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) return std::nullopt;
  const int64_t number = value.get<int64_t>();
  return number >= low ? std::optional<int64_t>(number) : std::nullopt;
}

// A number from -limit to limit.
std::optional<double> Number(const json& value, double limit) {
  if (!value.is_number()) return std::nullopt;
  const double number = value.get<double>();
  return -limit <= number && number <= limit ? std::optional<double>(number) : std::nullopt;
}

std::vector<std::string> StopStrings(const json& value) {
  std::vector<std::string> strings;
  const json items = value.is_string() ? json::array({value}) : value;
  if (!items.is_array()) Refuse("stop_strings", value, "non-empty strings");
  for (const json& item : items) {
    if (!item.is_string() || item.get_ref<const std::string&>().empty()) Refuse("stop_strings", value, "non-empty strings");
    strings.push_back(item.get<std::string>());
  }
  return strings;
}

std::vector<int64_t> TokenIds(const json& value) {
  std::vector<int64_t> ids;
  const json items = value.is_number_integer() ? json::array({value}) : value;
  if (!items.is_array()) Refuse("eos_token_id", value, "token ids");
  for (const json& item : items) {
    const std::optional<int64_t> id = WholeNumber(item, 0);
    if (!id) Refuse("eos_token_id", value, "token ids");
    ids.push_back(*id);
  }
  return ids;
}

std::vector<std::pair<int64_t, double>> Biases(const json& value) {
  if (!value.is_object()) Refuse("logit_bias", value, "a bias for each token id, as in {50256: -100}");
  std::vector<std::pair<int64_t, double>> biases;
  for (auto item = value.begin(); item != value.end(); ++item) {
    const std::string& given = item.key();
    const bool digits = !given.empty() && given.size() <= 19 && given.find_first_not_of("0123456789") == std::string::npos;
    const uint64_t token = digits ? std::stoull(given) : 0;
    if (!digits || token > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) Refuse("logit_bias", given, "token ids");
    const std::optional<double> bias = Number(*item, kBiasLimit);
    if (!bias) Refuse("logit_bias", *item, "numbers from -100 to 100");
    biases.emplace_back(static_cast<int64_t>(token), *bias);
  }
  return biases;
}

}  // namespace

void GenerationConfig::Set(const std::string& name, const json& value) {
  if (!IsKnown(name)) {
    std::string known;
    for (const char* one : kNames) known += (known.empty() ? "" : ", ") + std::string(one);
    UsageFault("generation setting " + BriefJson(name) + ": unknown; known: " + known);
  }
  if (value.is_null()) return;
  if (name == "stop_strings") {
    stop_strings = StopStrings(value);
  } else if (name == "eos_token_id") {
    eos_token_id = TokenIds(value);
  } else if (name == "do_sample") {
    if (!value.is_boolean()) Refuse(name, value, "True or False");
    do_sample = value.get<bool>();
  } else if (name == "logit_bias") {
    logit_bias = Biases(value);
  } else if (name == "presence_penalty" || name == "frequency_penalty") {
    const std::optional<double> number = Number(value, kPenaltyLimit);
    if (!number) Refuse(name, value, "a number from -2 to 2");
    (name == "presence_penalty" ? presence_penalty : frequency_penalty) = *number;
  } else if (name == "top_logprobs") {
    const std::optional<int64_t> count = WholeNumber(value, 0);
    if (!count || *count > kTopLogprobsLimit) Refuse(name, value, "a whole number from 0 to 20");
    top_logprobs = *count;
  } else if (name == "max_new_tokens" || name == "top_k" || name == "seed") {
    const int64_t low = name == "max_new_tokens" ? 1 : 0;
    const std::optional<int64_t> number = WholeNumber(value, low);
    if (!number) Refuse(name, value, "a whole number from " + std::to_string(low));
    if (name == "seed") {
      seed = static_cast<uint64_t>(*number);
    } else {
      (name == "top_k" ? top_k : max_new_tokens) = *number;
    }
  } else {
    const std::optional<double> number = Number(value, std::numeric_limits<double>::max());
    if (!number || *number < 0) Refuse(name, value, "a number from 0");
    if ((name == "top_p" || name == "min_p") && *number > 1) Refuse(name, value, "a number from 0 to 1");
    if (name == "repetition_penalty" && *number == 0) Refuse(name, value, "a number over 0");
    if (name == "temperature") {
      temperature = *number;
    } else if (name == "top_p") {
      top_p = *number;
    } else if (name == "min_p") {
      min_p = *number;
    } else {
      repetition_penalty = *number;
    }
  }
}

void GenerationConfig::ApplyFile(std::string_view content, const std::string& path) {
  const Json raw = ParseJson(content, path);
  if (!raw.is_object()) BundleFault(path, "", BriefJson(raw), "a JSON object");
  try {
    for (auto item = raw.begin(); item != raw.end(); ++item) {
      if (IsKnown(item.key())) Set(item.key(), *item);
    }
  } catch (const Error& error) {
    BundleFault(path, "", error.what(), "settings in range");
  }
}

void GenerationConfig::CheckVocabulary(int32_t vocab_size) const {
  for (const auto& [token, bias] : logit_bias) {
    if (token >= vocab_size) {
      UsageFault("logit bias: got token " + std::to_string(token) + ", expected ids from 0 to " + std::to_string(vocab_size - 1));
    }
  }
}

nlohmann::ordered_json GenerationConfig::ForTrace() const {
  nlohmann::ordered_json settings;
  settings["do_sample"] = do_sample;
  settings["temperature"] = temperature;
  settings["top_k"] = top_k;
  settings["top_p"] = top_p;
  settings["min_p"] = min_p ? nlohmann::ordered_json(*min_p) : nlohmann::ordered_json();
  settings["repetition_penalty"] = repetition_penalty;
  settings["presence_penalty"] = presence_penalty;
  settings["frequency_penalty"] = frequency_penalty;
  settings["logit_bias"] = nlohmann::ordered_json::object();
  for (const auto& [token, bias] : logit_bias) settings["logit_bias"][std::to_string(token)] = bias;
  settings["stop_strings"] = stop_strings;
  settings["seed"] = seed ? nlohmann::ordered_json(*seed) : nlohmann::ordered_json();
  settings["eos_token_id"] = eos_token_id;
  return settings;
}

}  // namespace sol_rt
