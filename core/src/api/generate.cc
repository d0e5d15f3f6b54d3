// Generations of the C interface.
#include <exception>
#include <limits>
#include <memory>
#include <vector>

#include "api/border.h"
#include "api/options.h"
#include "api/session.h"
#include "base/error.h"

using sol_rt::CloseGeneration;
using sol_rt::Engine;
using sol_rt::EndGeneration;
using sol_rt::FillStruct;
using sol_rt::Finish;
using sol_rt::GeneratedToken;
using sol_rt::Generation;
using sol_rt::GenerationRequest;
using sol_rt::GenerationResult;
using sol_rt::Guard;
using sol_rt::HostEngine;
using sol_rt::InCallback;
using sol_rt::RequireHandle;
using sol_rt::RequirePointer;
using sol_rt::RequireSized;
using sol_rt::RoundToken;
using sol_rt::RunOf;
using sol_rt::StepOutput;
using sol_rt::StepToRun;
using sol_rt::Turn;
using sol_rt::UsageFault;

namespace {

constexpr double kNone = std::numeric_limits<double>::quiet_NaN();

sol_finish FinishOf(Finish finish) {
  return finish == Finish::kStop ? SOL_FINISH_STOP : finish == Finish::kLength ? SOL_FINISH_LENGTH : SOL_FINISH_NONE;
}

void Start(sol_session& session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* given) {
  const sol_generate_options options = sol_rt::ReadStruct(given, sol_rt::DefaultOptions(), "sol_generate_options");
  if (num_tokens > 0) RequirePointer(prompt, "prompt");
  CloseGeneration(session);
  if (session.TakeCancel()) throw sol_rt::Error(SOL_ERROR_CANCELLED, "the generation was cancelled before it began; start it again");
  session.generation.reset();
  const sol_rt::Model& model = *session.model;
  GenerationRequest request;
  if (num_tokens > 0) request.prompt.assign(prompt, prompt + num_tokens);
  request.defaults = model.generation_config();
  request.settings = sol_rt::SettingsOf(options);
  request.dial = sol_rt::DialOf(session.model->config(), &session, options);
  request.mask = sol_rt::MaskOf(session, options);
  request.reuse_cache = options.reuse_cache != 0;
  request.lossless = options.lossless != 0;
  request.lookup = options.lookup != 0;
  if (options.trace != nullptr) {
    request.trace = options.trace;
    model.bundle().RequireOutside("trace", request.trace);
  }
  if (options.replay != nullptr) request.replay = options.replay;
  // Function bodies and GPUs gain nothing by fewer bits in a prompt.
  const bool dial_chooses = !model.prefill_is_named() && session.host == nullptr && model.factory()->native();
  if (!dial_chooses) request.dial.prefill = model.prefill();
  session.generation = std::make_unique<Generation>(
      sol_rt::GenerationParts{*session.engine, model.config(), model.identity(), model.tokenizer(), model.cost(), sol_rt::PolicyOf(session), session.live,
                              session.pace, session.draft_actions},
      std::move(request));
}

Generation& Running(sol_session& session, const char* function) {
  if (!session.generation) UsageFault(std::string(function) + ": no generation is running; call sol_session_start first");
  return *session.generation;
}

sol_token TokenOf(sol_session& session, const GeneratedToken& made) {
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

// The running generation, whose steps this library runs.
Generation& Stepping(sol_session& session, const char* function) {
  Generation& generation = Running(session, function);
  if (session.host != nullptr && session.host->driven()) {
    UsageFault(std::string(function) + ": the host runs the steps of this session; call sol_session_begin_step and sol_session_end_step");
  }
  if (session.step_begun) UsageFault(std::string(function) + ": a step has begun; end it with sol_session_end_step first");
  return generation;
}

size_t ReadPrompt(sol_session& session, size_t most) {
  return Stepping(session, "sol_session_read_prompt").ReadPrompt(most, [&session] { return session.TakeCancel(); });
}

sol_token Next(sol_session& session) {
  Generation& generation = Stepping(session, "sol_session_next");
  return TokenOf(session, generation.Next([&session] { return session.TakeCancel(); }));
}

// A session's part in a round.
struct Seat {
  sol_session* session;
  std::unique_ptr<Turn> turn = nullptr;
  const StepToRun* step = nullptr;  // null: an error came before it
  RoundToken* shared = nullptr;     // its token's run; null where the step has several tokens, or none
};

// The second half of a session's step.
sol_token EndSeat(Seat& seat) {
  sol_session& session = *seat.session;
  const auto cancelled = [&session] { return session.TakeCancel(); };
  const auto output = [&]() -> StepOutput {
    if (seat.shared == nullptr) return session.generation->Run(*seat.step, cancelled);
    if (seat.shared->error) std::rethrow_exception(seat.shared->error);
    return seat.shared->output;
  };
  return TokenOf(session, session.generation->End(output, cancelled));
}

void Round(sol_session* const* sessions, size_t count, sol_token* const* tokens, sol_error** errors) {
  constexpr const char* kName = "sol_batch_next";
  std::vector<Seat> seats;
  std::vector<sol_rt::Action> actions;
  for (size_t i = 0; i < count; ++i) {
    Seat& seat = seats.emplace_back(Seat{sessions[i]});
    errors[i] = Guard([&] {
      seat.turn = std::make_unique<Turn>(seat.session, kName);
      RequireSized(tokens[i], "sol_token");
      seat.step = &Stepping(*seat.session, kName).Begin([&] { return seat.session->TakeCancel(); }, count == 1 ? nullptr : &actions);
      if (seat.step->count == 1) actions.push_back(seat.step->action);
    });
  }
  std::vector<RoundToken> round;
  const auto single = [](const Seat& seat) { return seat.step != nullptr && seat.step->count == 1; };
  for (const Seat& seat : seats) {
    if (single(seat)) round.push_back({seat.session->engine.get(), *seat.step->tokens, seat.step->action});
  }
  Engine::ForwardTogether(round);
  RoundToken* next = round.data();
  for (Seat& seat : seats) {
    if (single(seat)) seat.shared = next++;
  }
  for (size_t i = 0; i < count; ++i) {
    if (seats[i].step != nullptr) errors[i] = Guard([&] { FillStruct(EndSeat(seats[i]), tokens[i]); });
  }
}

// The host's engine of a session whose steps the host runs itself.
HostEngine& Halves(sol_session& session, const char* function) {
  if (session.host != nullptr) return *session.host;
  UsageFault(std::string(function) + ": the core's engine runs the steps of this session; call sol_session_next, or make one with sol_session_create_on");
}

sol_policy_run BeginPolicy(sol_session& session) {
  Halves(session, "sol_session_begin_policy");
  Generation& generation = Running(session, "sol_session_begin_policy");
  sol_policy_run made{};
  made.size = sizeof(made);
  if (session.host_policy == nullptr) return made;
  const sol_rt::PolicyQuestion* const question = generation.BeginPolicy([&session] { return session.TakeCancel(); });
  if (question == nullptr) return made;
  const sol_rt::Config& config = session.model->config();
  made.graph = config.policy->file.c_str();
  made.hidden = question->hidden;
  made.hidden_size = static_cast<size_t>(config.model.hidden_size);
  made.token = question->token;
  made.scalars = question->scalars->data();
  made.num_scalars = question->scalars->size();
  made.previous_action = question->previous_action;
  made.step = question->step;
  made.first = session.host_policy->first() ? 1 : 0;
  return made;
}

void EndPolicy(sol_session& session, const float* logits, size_t num_logits) {
  if (session.host_policy == nullptr) UsageFault("sol_session_end_policy: no policy was asked; call sol_session_begin_policy first");
  const sol_rt::PolicySpec& spec = *session.model->config().policy;
  RequirePointer(logits, "sol_session_end_policy: logits");
  if (num_logits != spec.actions.size()) {
    UsageFault("sol_session_end_policy: logits: got " + std::to_string(num_logits) + " floats, expected " + std::to_string(spec.actions.size()));
  }
  if (!sol_rt::AllFinite(logits, num_logits)) {
    throw sol_rt::Error(SOL_ERROR_NUMERIC, "policy " + spec.file + ": non-finite logits; check the bundle with `sol-rt verify`, or use --schedule uniform");
  }
  session.host_policy->Answer(std::vector<float>(logits, logits + num_logits));
}

sol_run BeginStep(sol_session& session) {
  HostEngine& engine = Halves(session, "sol_session_begin_step");
  const StepToRun& step = Running(session, "sol_session_begin_step").Begin([&session] { return session.TakeCancel(); });
  const sol_rt::HostRun& run = engine.Begin(step.tokens, step.count, step.action);
  session.action = run.action.Tag();
  session.step_begun = true;
  return RunOf(run, session.action);
}

void RequireLength(const char* what, size_t got, int32_t expected) {
  if (got == static_cast<size_t>(expected)) return;
  UsageFault(std::string("sol_session_end_step: ") + what + ": got " + std::to_string(got) + " floats, expected " + std::to_string(expected));
}

sol_token EndStep(sol_session& session, const float* logits, size_t num_logits, const float* hidden, size_t num_hidden) {
  HostEngine& engine = Halves(session, "sol_session_end_step");
  Generation& generation = Running(session, "sol_session_end_step");
  if (!session.step_begun) UsageFault("sol_session_end_step: no step has begun; call sol_session_begin_step first");
  RequirePointer(logits, "sol_session_end_step: logits");
  RequirePointer(hidden, "sol_session_end_step: hidden");
  RequireLength("logits", num_logits, engine.config().model.vocab_size);
  RequireLength("hidden", num_hidden, engine.config().model.hidden_size);
  session.step_begun = false;
  return TokenOf(session, generation.End([&] { return engine.EndCopied(logits, hidden); }, [&session] { return session.TakeCancel(); }));
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
  result.drafted_tokens = made.drafted_tokens;
  result.accepted_tokens = made.accepted_tokens;
  result.asked_budget = made.asked.value_or(kNone);
  result.dense_prompt = made.dense_prompt ? 1 : 0;
  return result;
}

}  // namespace

extern "C" {

void sol_generate_options_init(sol_generate_options* options, uint32_t size) { sol_rt::InitStruct(sol_rt::DefaultOptions(), options, size); }

sol_error* sol_session_start(sol_session* session, const int32_t* prompt, size_t num_tokens, const sol_generate_options* options) {
  return Guard([&] {
    const Turn turn(session, "sol_session_start");
    Start(*session, prompt, num_tokens, options);
  });
}

sol_error* sol_session_read_prompt(sol_session* session, size_t most, size_t* left) {
  return Guard([&] {
    const Turn turn(session, "sol_session_read_prompt");
    RequirePointer(left, "sol_session_read_prompt: left");
    *left = ReadPrompt(*session, most);
  });
}

sol_error* sol_session_next(sol_session* session, sol_token* token) {
  return Guard([&] {
    const Turn turn(session, "sol_session_next");
    RequireSized(token, "sol_token");
    FillStruct(Next(*session), token);
  });
}

sol_error* sol_batch_next(sol_session* const* sessions, size_t count, sol_token* const* tokens, sol_error** errors) {
  return Guard([&] {
    if (count == 0) return;
    RequirePointer(sessions, "sol_batch_next: sessions");
    RequirePointer(tokens, "sol_batch_next: tokens");
    RequirePointer(errors, "sol_batch_next: errors");
    Round(sessions, count, tokens, errors);
  });
}

sol_error* sol_session_begin_policy(sol_session* session, sol_policy_run* run) {
  return Guard([&] {
    const Turn turn(session, "sol_session_begin_policy");
    RequireSized(run, "sol_policy_run");
    FillStruct(BeginPolicy(*session), run);
  });
}

sol_error* sol_session_end_policy(sol_session* session, const float* logits, size_t num_logits) {
  return Guard([&] {
    const Turn turn(session, "sol_session_end_policy");
    EndPolicy(*session, logits, num_logits);
  });
}

sol_error* sol_session_begin_step(sol_session* session, sol_run* run) {
  return Guard([&] {
    const Turn turn(session, "sol_session_begin_step");
    RequireSized(run, "sol_run");
    FillStruct(BeginStep(*session), run);
  });
}

sol_error* sol_session_end_step(sol_session* session, const float* logits, size_t num_logits, const float* hidden, size_t num_hidden,
                                sol_token* token) {
  return Guard([&] {
    const Turn turn(session, "sol_session_end_step");
    RequireSized(token, "sol_token");
    FillStruct(EndStep(*session, logits, num_logits, hidden, num_hidden), token);
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
