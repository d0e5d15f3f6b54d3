#include "api/options.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <optional>

#include "api/border.h"
#include "base/error.h"
#include "budget/controller/controller.h"
#include "text/unicode/utf8.h"

namespace sol_rt {
namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::optional<double> Number(double value) { return std::isnan(value) ? std::nullopt : std::optional<double>(value); }

// The number with the fewest decimal digits that `value` is the nearest float of: 1.3, where a cast gives 1.2999999523162842.
double AsWritten(float value) {
  char text[32];
  for (int digits = 1; digits <= std::numeric_limits<float>::max_digits10; ++digits) {
    std::snprintf(text, sizeof(text), "%.*g", digits, static_cast<double>(value));
    if (std::strtof(text, nullptr) == value) return std::strtod(text, nullptr);
  }
  return static_cast<double>(value);  // not a number
}

// Asks the host's callback for the action of each step.
class HostChoice {
 public:
  // `session` is the one whose callback it is; null in a plan without a model.
  HostChoice(sol_session* session, size_t hidden_size, sol_choose choose, void* user)
      : session_(session), hidden_size_(hidden_size), choose_(choose), user_(user) {}

  size_t operator()(const StepSeen& seen, Controller& controller) {
    const std::vector<Action>& actions = controller.actions();
    if (tags_.empty()) {
      for (const Action& action : actions) tags_.push_back(action.Tag());
    }
    std::vector<const char*> tags;
    for (const std::string& tag : tags_) tags.push_back(tag.c_str());
    const std::vector<char>& marks = controller.Allowed(seen.context);
    const std::vector<uint8_t> allowed(marks.begin(), marks.end());
    const sol_distribution distribution = DistributionOf(seen.distribution);
    sol_choice choice{};
    choice.size = sizeof(choice);
    choice.token = seen.token;
    choice.step = seen.step;
    choice.context = seen.context;
    choice.num_actions = tags.size();
    choice.actions = tags.data();
    choice.relative_costs = controller.RelativeCosts(seen.context);
    choice.allowed = allowed.data();
    choice.target = controller.Target(seen.context);
    choice.allowance = controller.Allowance(seen.context);
    choice.budget = controller.Budget().value_or(kNone);
    choice.achieved_budget = controller.Achieved();
    choice.hidden = seen.hidden;
    choice.hidden_size = seen.hidden == nullptr ? 0 : hidden_size_;
    choice.logits = seen.distribution.logits;
    choice.vocab_size = static_cast<size_t>(seen.distribution.size);
    choice.distribution = &distribution;
    const int32_t chosen = Ask(choice);
    if (chosen < 0) throw Error(SOL_ERROR_HOST, "the host's schedule asked to stop at step " + std::to_string(seen.step));
    if (static_cast<size_t>(chosen) >= actions.size()) {
      UsageFault("the host's schedule: got action " + std::to_string(chosen) + " at step " + std::to_string(seen.step) + ", expected 0 to " +
                 std::to_string(actions.size() - 1));
    }
    return static_cast<size_t>(chosen);
  }

 private:
  int32_t Ask(const sol_choice& choice) {
    if (session_ == nullptr) return choose_(user_, &choice);
    const InCallback mark(*session_);
    return choose_(user_, &choice);
  }

  sol_session* session_;
  size_t hidden_size_;
  sol_choose choose_;
  void* user_;
  std::vector<std::string> tags_;
};

}  // namespace

sol_distribution DistributionOf(const Distribution& distribution) {
  sol_distribution made{};
  made.size = sizeof(made);
  made.top = distribution.top;
  made.top_logit = distribution.logits[distribution.top];
  made.second_logit = distribution.second;
  made.total = distribution.total;
  made.moment = distribution.moment;
  made.top_probability = distribution.TopProbability();
  made.margin = distribution.Margin();
  made.entropy = distribution.Entropy();
  made.log_sum = distribution.LogSum();
  return made;
}

std::vector<std::pair<std::string, nlohmann::json>> SettingsOf(const sol_generate_options& options) {
  std::vector<std::pair<std::string, nlohmann::json>> settings;
  const auto number = [&](const char* name, double value) {
    if (!std::isnan(value)) settings.emplace_back(name, value);
  };
  const auto count = [&](const char* name, int64_t value) {
    if (value >= 0) settings.emplace_back(name, value);
  };
  count("max_new_tokens", options.max_new_tokens);
  if (options.do_sample > 1) {
    UsageFault("sol_generate_options: do_sample: got " + std::to_string(options.do_sample) + ", expected 0 or 1, or a negative number for the model's own");
  }
  if (options.do_sample >= 0) settings.emplace_back("do_sample", options.do_sample == 1);
  number("temperature", options.temperature);
  count("top_k", options.top_k);
  number("top_p", options.top_p);
  number("min_p", options.min_p);
  number("repetition_penalty", options.repetition_penalty);
  number("presence_penalty", options.presence_penalty);
  number("frequency_penalty", options.frequency_penalty);
  count("seed", options.seed);
  count("top_logprobs", options.top_logprobs);
  if (options.num_logit_bias > 0) RequirePointer(options.logit_bias, "sol_generate_options: logit_bias");
  if (options.num_stop_strings > 0) RequirePointer(options.stop_strings, "sol_generate_options: stop_strings");
  if (options.num_end_tokens > 0) RequirePointer(options.end_tokens, "sol_generate_options: end_tokens");
  if (options.logit_bias != nullptr) {
    nlohmann::json biases = nlohmann::json::object();
    for (size_t i = 0; i < options.num_logit_bias; ++i) {
      const sol_logit_bias& one = options.logit_bias[i];
      biases[std::to_string(one.token)] = AsWritten(one.bias);
    }
    settings.emplace_back("logit_bias", std::move(biases));
  }
  if (options.stop_strings != nullptr) {
    nlohmann::json strings = nlohmann::json::array();
    for (size_t i = 0; i < options.num_stop_strings; ++i) {
      RequirePointer(options.stop_strings[i], "sol_generate_options: stop_strings");
      if (!IsValidUtf8(options.stop_strings[i])) throw Error(SOL_ERROR_TEXT, "stop_strings: not UTF-8 text; convert it");
      strings.push_back(options.stop_strings[i]);
    }
    settings.emplace_back("stop_strings", std::move(strings));
  }
  if (options.end_tokens != nullptr) {
    settings.emplace_back("eos_token_id", std::vector<int32_t>(options.end_tokens, options.end_tokens + options.num_end_tokens));
  }
  return settings;
}

Dial DialOf(const Config& config, sol_session* session, const sol_generate_options& options) {
  Dial dial;
  dial.budget = Number(options.budget);
  dial.kv_density = Number(options.kv_density);
  dial.channel_density = Number(options.channel_density);
  dial.bits = Number(options.bits);
  dial.tokens_per_second = Number(options.tokens_per_second);
  dial.max_loss = Number(options.max_loss);
  if (options.schedule != nullptr) dial.schedule = options.schedule;
  if (options.seed >= 0) dial.seed = static_cast<uint64_t>(options.seed);
  const auto hidden_size = static_cast<size_t>(config.model.hidden_size);
  if (options.choose != nullptr) dial.own = HostChoice(session, hidden_size, options.choose, options.choose_user);
  return dial;
}

AskMask MaskOf(sol_session& session, const sol_generate_options& options) {
  if (options.mask == nullptr) return nullptr;
  return [&session, mask = options.mask, user = options.mask_user](const int32_t* tokens, size_t count, uint32_t* words, size_t num_words) {
    const InCallback mark(session);
    const int32_t answer = mask(user, tokens, count, words, num_words);
    const std::string where = " at position " + std::to_string(count) + " of the text";
    if (answer < 0) throw Error(SOL_ERROR_HOST, "the host's mask asked to stop" + where);
    if (answer > SOL_MASK_STOP) {
      UsageFault("the host's mask: got " + std::to_string(answer) + where + ", expected 0 to " + std::to_string(SOL_MASK_STOP) + ", or less to end the call");
    }
    return answer == SOL_MASK_STOP ? Masked::kStop : answer == SOL_MASK_FILLED ? Masked::kFilled : Masked::kNone;
  };
}

sol_generate_options DefaultOptions() {
  sol_generate_options options{};
  options.max_new_tokens = options.do_sample = options.top_k = options.top_logprobs = -1;
  options.seed = -1;
  options.temperature = options.top_p = options.min_p = options.repetition_penalty = kNone;
  options.presence_penalty = options.frequency_penalty = kNone;
  options.budget = options.tokens_per_second = options.max_loss = kNone;
  options.kv_density = options.channel_density = options.bits = kNone;
  return options;
}

}  // namespace sol_rt
