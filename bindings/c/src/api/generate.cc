// Generations of the C interface.
#include <cmath>
#include <limits>

#include "api/border.h"
#include "api/session.h"
#include "base/error.h"
#include "text/unicode/utf8.h"

using sol_rt::CloseGeneration;
using sol_rt::Dial;
using sol_rt::EndGeneration;
using sol_rt::FillStruct;
using sol_rt::Finish;
using sol_rt::GeneratedToken;
using sol_rt::Generation;
using sol_rt::GenerationRequest;
using sol_rt::GenerationResult;
using sol_rt::Guard;
using sol_rt::RequireHandle;
using sol_rt::RequirePointer;
using sol_rt::RequireSized;
using sol_rt::Turn;
using sol_rt::UsageFault;

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

std::optional<double> Number(double value) { return std::isnan(value) ? std::nullopt : std::optional<double>(value); }

// The host's changes to the model's own settings. They are checked where a file's are.
std::vector<std::pair<std::string, nlohmann::json>> Settings(const sol_generate_options& options) {
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
      biases[std::to_string(one.token)] = one.bias;
    }
    settings.emplace_back("logit_bias", std::move(biases));
  }
  if (options.stop_strings != nullptr) {
    nlohmann::json strings = nlohmann::json::array();
    for (size_t i = 0; i < options.num_stop_strings; ++i) {
      RequirePointer(options.stop_strings[i], "sol_generate_options: stop_strings");
      if (!sol_rt::IsValidUtf8(options.stop_strings[i])) throw sol_rt::Error(SOL_ERROR_TEXT, "stop_strings: not UTF-8 text; convert it");
      strings.push_back(options.stop_strings[i]);
    }
    settings.emplace_back("stop_strings", std::move(strings));
  }
  if (options.end_tokens != nullptr) {
    settings.emplace_back("eos_token_id", std::vector<int32_t>(options.end_tokens, options.end_tokens + options.num_end_tokens));
  }
  return settings;
}

Dial DialOf(const sol_generate_options& options) {
  Dial dial;
  dial.budget = Number(options.budget);
  dial.kv_density = Number(options.kv_density);
  dial.channel_density = Number(options.channel_density);
  dial.bits = Number(options.bits);
  dial.tokens_per_second = Number(options.tokens_per_second);
  dial.max_loss = Number(options.max_loss);
  if (options.schedule != nullptr) dial.schedule = options.schedule;
  if (options.seed >= 0) dial.seed = static_cast<uint64_t>(options.seed);
  return dial;
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

sol_finish FinishOf(Finish finish) {
  return finish == Finish::kStop ? SOL_FINISH_STOP : finish == Finish::kLength ? SOL_FINISH_LENGTH : SOL_FINISH_NONE;
}

void Start(sol_session& session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* given) {
  const sol_generate_options options = sol_rt::ReadStruct(given, DefaultOptions(), "sol_generate_options");
  if (num_tokens > 0) RequirePointer(prompt, "prompt");
  CloseGeneration(session);
  if (session.cancelled.exchange(false)) throw sol_rt::Error(SOL_ERROR_CANCELLED, "the generation was cancelled before it began; start it again");
  session.generation.reset();
  const sol_rt::Model& model = *session.model;
  if (!session.policy) session.policy = session.model->MakePolicyRunner();
  GenerationRequest request;
  if (num_tokens > 0) request.prompt.assign(prompt, prompt + num_tokens);
  request.defaults = model.generation_config();
  request.settings = Settings(options);
  request.dial = DialOf(options);
  request.reuse_cache = options.reuse_cache != 0;
  if (options.trace != nullptr) {
    request.trace = options.trace;
    model.bundle().RequireOutside("trace", request.trace);
  }
  if (options.replay != nullptr) request.replay = options.replay;
  session.generation = std::make_unique<Generation>(
      sol_rt::GenerationParts{session.engine, model.config(), model.identity(), model.prefill(), model.tokenizer(), model.cost(), session.policy.get(),
                              session.live},
      std::move(request));
}

sol_token Next(sol_session& session) {
  if (!session.generation) UsageFault("sol_session_next: no generation is running; call sol_session_start first");
  const GeneratedToken& made = session.generation->Next([&session] { return session.cancelled.exchange(false); });
  if (made.finish != Finish::kNone) session.cancelled = false;  // a request that came too late for this text is not meant for the next one
  session.text = made.text;
  session.action = made.action.Tag();
  session.top_tokens.clear();
  session.top_logprobs.clear();
  for (const auto& [token, logprob] : made.likeliest) {
    session.top_tokens.push_back(token);
    session.top_logprobs.push_back(logprob);
  }
  sol_token token{};
  token.size = sizeof(token);
  token.token = made.token;
  token.text = session.text.c_str();
  token.text_length = session.text.size();
  token.action = session.action.c_str();
  token.logprob = made.logprob;
  token.cost = made.cost;
  token.relative_cost = made.relative_cost;
  token.achieved_budget = made.achieved;
  token.requested_budget = made.requested;
  token.milliseconds = made.ms;
  token.finish = FinishOf(made.finish);
  token.top_tokens = session.top_tokens.data();
  token.top_logprobs = session.top_logprobs.data();
  token.num_top = session.top_tokens.size();
  return token;
}

sol_result Result(sol_session& session) {
  if (!session.generation) UsageFault("sol_session_result: no generation has begun; call sol_session_start first");
  GenerationResult made = session.generation->Result();
  session.schedule = std::move(made.schedule);
  session.cost_model = std::move(made.cost_model);
  sol_result result{};
  result.size = sizeof(result);
  result.num_tokens = static_cast<int32_t>(made.num_tokens);
  result.prompt_tokens = static_cast<int32_t>(made.prompt_tokens);
  result.cached_tokens = static_cast<int32_t>(made.cached_tokens);
  result.schedule = session.schedule.c_str();
  result.cost_model = session.cost_model.c_str();
  result.requested_budget = made.requested;
  result.achieved_budget = made.achieved;
  result.expected_loss = made.expected_loss.value_or(kNone);
  result.prompt_tokens_per_second = made.prompt_tokens_per_second;
  result.tokens_per_second = made.tokens_per_second;
  result.time_to_first_token_ms = made.first_token_ms;
  result.fastest_tokens_per_second = made.fastest_rate.value_or(kNone);
  result.floored = made.floored ? 1 : 0;
  result.first_difference = static_cast<int32_t>(made.first_difference);
  result.finish = FinishOf(made.finish);
  return result;
}

// Says of a session that the host's callback runs in this thread, which may then ask for what a session holds.
class InCallback {
 public:
  explicit InCallback(sol_session& session) : session_(session) { session_.in_callback = std::this_thread::get_id(); }
  ~InCallback() { session_.in_callback = std::thread::id(); }

 private:
  sol_session& session_;
};

}  // namespace

extern "C" {

void sol_generate_options_init(sol_generate_options* options, uint32_t size) { sol_rt::InitStruct(DefaultOptions(), options, size); }

sol_error* sol_session_start(sol_session* session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* options) {
  return Guard([&] {
    const Turn turn(session, "sol_session_start");
    Start(*session, prompt, num_tokens, options);
  });
}

sol_error* sol_session_next(sol_session* session, sol_token* token) {
  return Guard([&] {
    const Turn turn(session, "sol_session_next");
    RequireSized(token, "sol_token");
    FillStruct(Next(*session), token);
  });
}

sol_error* sol_session_stop(sol_session* session) {
  return Guard([&] {
    const Turn turn(session, "sol_session_stop");
    EndGeneration(*session);
  });
}

sol_error* sol_session_result(const sol_session* session, sol_result* result) {
  return Guard([&] {
    const Turn turn(session, "sol_session_result", true);
    RequireSized(result, "sol_result");
    FillStruct(Result(*const_cast<sol_session*>(session)), result);
  });
}

sol_error* sol_session_generate(sol_session* session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* options,
                                sol_on_token on_token, void* user, sol_result* result) {
  return Guard([&] {
    const Turn turn(session, "sol_session_generate");
    if (result != nullptr) RequireSized(result, "sol_result");
    Start(*session, prompt, num_tokens, options);
    for (bool more = true; more;) {
      const sol_token token = Next(*session);
      more = token.finish == SOL_FINISH_NONE;
      if (on_token == nullptr) continue;
      const InCallback mark(*session);
      if (on_token(user, &token) != 0) more = false;
    }
    EndGeneration(*session);
    if (result != nullptr) FillStruct(Result(*session), result);
  });
}

void sol_session_cancel(sol_session* session) {
  if (session != nullptr) session->cancelled = true;
}

sol_error* sol_session_set_budget(sol_session* session, double budget) {
  return Guard([&] {
    RequireHandle(session, "sol_session_set_budget");
    session->live.SetBudget(budget);
  });
}

sol_error* sol_session_set_tokens_per_second(sol_session* session, double rate) {
  return Guard([&] {
    RequireHandle(session, "sol_session_set_tokens_per_second");
    session->live.SetTokensPerSecond(rate);
  });
}

int32_t sol_session_busy(const sol_session* session) {
  return session != nullptr && (session->in_call.load() || session->live.is_open()) ? 1 : 0;
}

}  // extern "C"
