// Single runs and scores of the C interface: a host's own loop, and measurements.
#include <algorithm>
#include <ctime>
#include <functional>
#include <limits>
#include <optional>

#include "api/border.h"
#include "api/options.h"
#include "api/session.h"
#include "base/error.h"
#include "budget/measure/measure_costs.h"
#include "budget/measure/profile.h"
#include "generate/scoring.h"
#include "sol_plan.h"

using sol_rt::Action;
using sol_rt::CloseGeneration;
using sol_rt::Guard;
using sol_rt::RequirePointer;
using sol_rt::Turn;
using sol_rt::UsageFault;

namespace {

// Throws SOL_ERROR_USAGE if a buffer of the host is not as long as its results. No product overflows: rows are at most as many as the context has tokens.
void RequireRoom(const char* what, const void* buffer, size_t length, size_t rows, int32_t width) {
  const size_t expected = rows * static_cast<size_t>(width);
  if (buffer == nullptr || length == expected) return;
  UsageFault(std::string(what) + ": got " + std::to_string(length) + ", expected " + std::to_string(rows) + "*" + std::to_string(width) + " = " +
             std::to_string(expected));
}

// Buffers for the results of a run of `num_tokens` tokens.
sol_rt::Rows RowsOf(const sol_session& session, const sol_rows* given, size_t num_tokens) {
  if (given == nullptr) return {};
  sol_rows defaults{};
  defaults.num_logits = 1;
  const sol_rows wanted = sol_rt::ReadStruct(given, defaults, "sol_rows");
  if (wanted.num_logits < 1 || wanted.num_logits > num_tokens) {
    UsageFault("sol_rows: num_logits: got " + std::to_string(wanted.num_logits) + " for " + std::to_string(num_tokens) + " tokens, expected 1 to " +
               std::to_string(num_tokens));
  }
  const sol_rt::ModelDims& dims = session.model->config().model;
  RequireRoom("sol_rows: logits_length", wanted.logits, wanted.logits_length, wanted.num_logits, dims.vocab_size);
  RequireRoom("sol_rows: hidden_length", wanted.hidden, wanted.hidden_length, wanted.num_logits, dims.hidden_size);
  return {wanted.num_logits, wanted.logits, wanted.hidden};
}

void Forward(sol_session& session, const int32_t* tokens, size_t num_tokens, const char* tag, const sol_rows* given, sol_distribution* seen) {
  if (num_tokens > 0) RequirePointer(tokens, "sol_session_forward: tokens");
  if (seen != nullptr) sol_rt::RequireSized(seen, "sol_distribution");
  if (num_tokens > static_cast<size_t>(session.engine->max_context())) {
    throw sol_rt::Error(SOL_ERROR_CONTEXT, "forward: got " + std::to_string(num_tokens) + " tokens, expected at most " +
                                               std::to_string(session.engine->max_context()) + ", the model's context; run fewer");
  }
  const sol_rt::Rows rows = RowsOf(session, given, num_tokens);
  const Action action = tag == nullptr ? session.model->config().dense : Action::Parse(tag);
  CloseGeneration(session);
  const auto cancelled = [&session] { return session.TakeCancel(); };
  sol_rt::Engine& engine = *session.engine;
  const sol_rt::StepOutput output = num_tokens > 1 ? engine.Read(tokens, num_tokens, action, cancelled, rows)
                                                   : engine.Forward(tokens, num_tokens, action, cancelled, rows);
  if (session.decoder) session.decoder->Continue(output);
  if (seen != nullptr) sol_rt::FillStruct(sol_rt::DistributionOf(output.distribution), seen);
}

// The decoder of a dial. Of a score, `prompt` is how many tokens are read before the first step; then a dial that asks for nothing but a schedule is a budget
// of 1. Without it the dial's own default applies.
std::unique_ptr<sol_rt::Decoder> DecoderOf(sol_session& session, const sol_generate_options* given, std::optional<size_t> prompt = std::nullopt) {
  const sol_generate_options options = sol_rt::ReadStruct(given, sol_rt::DefaultOptions(), "sol_generate_options");
  sol_rt::Dial dial = sol_rt::DialOf(session.model->config(), &session, options);
  const sol_rt::Model& model = *session.model;
  if (prompt) {
    if (dial.IsEmpty()) dial.budget = 1.0;
    dial.prompt = sol_rt::PromptSeen{static_cast<int64_t>(*prompt)};
    dial.prefill = model.prefill();
  }
  return std::make_unique<sol_rt::Decoder>(*session.engine, sol_rt::MakePlanner(model.config(), model.cost(), dial, sol_rt::PolicyOf(session)));
}

void Step(sol_session& session, int32_t token, const sol_rows* given, sol_distribution* seen, sol_step* filled) {
  sol_rt::RequireSized(filled, "sol_step");
  if (seen != nullptr) sol_rt::RequireSized(seen, "sol_distribution");
  if (!session.decoder) UsageFault("sol_session_step: no plan was made; call sol_session_plan first");
  const sol_rt::Rows rows = RowsOf(session, given, 1);
  const sol_rt::StepRecord made = session.decoder->Step(token, [&session] { return session.TakeCancel(); }, rows);
  const sol_rt::Planner& planner = session.decoder->planner();
  session.action = made.action.Tag();
  sol_step step{};
  step.action = session.action.c_str();
  step.context = made.context;
  step.cost = made.charge.cost;
  step.relative_cost = made.charge.relative;
  step.achieved_budget = planner.Achieved();
  step.requested_budget = planner.Requested();
  step.floored = planner.Floored() ? 1 : 0;
  sol_rt::FillStruct(step, filled);
  if (seen != nullptr) sol_rt::FillStruct(sol_rt::DistributionOf(session.decoder->output().distribution), seen);
}

void Resume(sol_session& session, size_t length, const float* logits, size_t num_logits, const float* hidden, size_t num_hidden) {
  if (!session.decoder) UsageFault("sol_session_resume: no plan was made; call sol_session_plan first");
  RequirePointer(logits, "sol_session_resume: logits");
  RequirePointer(hidden, "sol_session_resume: hidden");
  const sol_rt::ModelDims& dims = session.model->config().model;
  RequireRoom("sol_session_resume: num_logits", logits, num_logits, 1, dims.vocab_size);
  RequireRoom("sol_session_resume: num_hidden", hidden, num_hidden, 1, dims.hidden_size);
  const size_t held = sol_rt::HeldBy(session);
  if (length < 1 || length > held) {
    UsageFault("sol_session_resume: got " + std::to_string(length) + ", expected 1 to " + std::to_string(held) + ", the tokens in the cache");
  }
  CloseGeneration(session);
  session.decoder->Resume(static_cast<int64_t>(length), logits, hidden);
}

sol_rt::ActiveChannels ChannelsOf(const int32_t* up, const int32_t* down, const int32_t* qkv, const int32_t* o, size_t num_layers) {
  const auto counts = [&](const int32_t* given) { return given == nullptr ? std::vector<int32_t>() : std::vector<int32_t>(given, given + num_layers); };
  return {counts(up), counts(down), counts(qkv), counts(o)};
}

void Score(sol_session& session, const int32_t* tokens, size_t num_tokens, size_t context, const sol_generate_options* given, sol_scores* filled) {
  sol_rt::RequireSized(filled, "sol_scores");
  sol_scores scores = sol_rt::ReadStruct(filled, sol_scores{}, "sol_scores");
  if (num_tokens > 0) RequirePointer(tokens, "sol_session_score: tokens");
  const sol_rt::Model& model = *session.model;
  const sol_rt::ModelDims& dims = model.config().model;
  sol_rt::RequireScorable(*session.engine, num_tokens, context);
  const size_t count = num_tokens - context;
  RequireRoom("sol_scores: logprobs_length", scores.logprobs, scores.logprobs_length, count, 1);
  RequireRoom("sol_scores: logits_length", scores.logits, scores.logits_length, count, dims.vocab_size);
  RequireRoom("sol_scores: hidden_length", scores.hidden, scores.hidden_length, count, dims.hidden_size);
  const std::unique_ptr<sol_rt::Decoder> decoder = DecoderOf(session, given, context);
  CloseGeneration(session);
  const std::vector<sol_rt::StepRecord> steps = sol_rt::Score(*session.engine, *decoder, model.prefill(), tokens, num_tokens, context,
                                                              {scores.logprobs, scores.logits, scores.hidden}, [&session] { return session.TakeCancel(); });
  session.scored_tags.clear();
  session.scored_actions.clear();
  session.scored_costs.clear();
  for (const sol_rt::StepRecord& step : steps) {
    session.scored_tags.push_back(step.action.Tag());
    session.scored_costs.push_back(step.charge.cost);
  }
  for (const std::string& tag : session.scored_tags) session.scored_actions.push_back(tag.c_str());
  const sol_rt::Planner& planner = decoder->planner();
  session.schedule = planner.Schedule();
  scores.actions = session.scored_actions.data();
  scores.num_actions = session.scored_actions.size();
  scores.costs = session.scored_costs.data();
  scores.schedule = session.schedule.c_str();
  scores.achieved_budget = planner.Achieved();
  scores.requested_budget = planner.Requested();
  scores.expected_loss = planner.ExpectedLoss().value_or(std::numeric_limits<double>::quiet_NaN());
  scores.floored = planner.Floored() ? 1 : 0;
  sol_rt::FillStruct(scores, filled);
}

void Profile(sol_session& session, sol_profile* filled) {
  sol_rt::RequireSized(filled, "sol_profile");
  sol_profile profile = sol_rt::ReadStruct(filled, sol_profile{}, "sol_profile");
  const sol_rt::Model& model = *session.model;
  if (profile.num_contexts > 0) RequirePointer(profile.contexts, "sol_profile: contexts");
  sol_rt::ProfilePlan plan{{profile.contexts, profile.contexts + profile.num_contexts}, profile.repeats, profile.seconds};
  const int64_t room = session.engine->max_context() - 1;
  const bool rises = std::is_sorted(plan.contexts.begin(), plan.contexts.end(), std::less_equal<int64_t>());
  if (plan.contexts.empty() || !rises || plan.contexts.front() < 1 || plan.contexts.back() > room || plan.repeats < 1 || !(plan.seconds >= 0)) {
    UsageFault("sol_profile: got " + std::to_string(plan.contexts.size()) + " contexts, " + std::to_string(plan.repeats) + " repeats and " +
               std::to_string(plan.seconds) + " seconds, expected rising contexts from 1 to " + std::to_string(room) + ", 1 repeat or more, 0 seconds or more");
  }
  CloseGeneration(session);
  const auto report = [&](const char* what, uint64_t done, uint64_t total) {
    if (profile.progress != nullptr && profile.progress(profile.user, what, done, total) != 0) {
      throw sol_rt::Error(SOL_ERROR_HOST, "sol_session_profile: the host's progress callback asked to stop");
    }
  };
  const auto cancelled = [&session] { return session.TakeCancel(); };
  const sol_rt::Profile found = sol_rt::ProfileSteps(*session.engine, sol_rt::PolicyOf(session), plan, cancelled, report);
  sol_rt::CostTable table;
  table.bundle = model.identity();
  table.created = sol_rt::IsoTime(std::time(nullptr));
  table.policy_ms = found.policy_ms;
  table.lines = found.lines;
  if (profile.device != nullptr) table.device = profile.device;
  if (session.host == nullptr) {
    if (profile.device == nullptr) table.device = model.factory()->Device();
    if (model.factory()->native()) table.tuning = model.factory()->tuning();
  }
  session.text = table.ToJson();
  session.scored_tags.clear();
  session.scored_actions.clear();
  session.scored_costs.clear();
  for (const Action& action : found.actions) session.scored_tags.push_back(action.Tag());
  for (const std::string& tag : session.scored_tags) session.scored_actions.push_back(tag.c_str());
  for (const std::vector<double>& row : found.ms) session.scored_costs.insert(session.scored_costs.end(), row.begin(), row.end());
  profile.actions = session.scored_actions.data();
  profile.num_actions = session.scored_actions.size();
  profile.ms = session.scored_costs.data();
  profile.num_measured = found.ms.size();
  profile.table = session.text.c_str();
  sol_rt::FillStruct(profile, filled);
}

}  // namespace

extern "C" {

sol_error* sol_session_forward(sol_session* session, const int32_t* tokens, size_t num_tokens, const char* action, const sol_rows* rows,
                               sol_distribution* seen) {
  return Guard([&] {
    const Turn turn(session, "sol_session_forward");
    Forward(*session, tokens, num_tokens, action, rows, seen);
  });
}

sol_error* sol_session_set_active_channels(sol_session* session, const char* variant, const int32_t* up, const int32_t* down, const int32_t* qkv,
                                           const int32_t* o, size_t num_layers) {
  return Guard([&] {
    const Turn turn(session, "sol_session_set_active_channels");
    RequirePointer(variant, "sol_session_set_active_channels: variant");
    const int32_t layers = session->model->config().model.num_layers;
    if (num_layers != static_cast<size_t>(layers)) {
      UsageFault("sol_session_set_active_channels: num_layers: got " + std::to_string(num_layers) + ", expected the model's " + std::to_string(layers));
    }
    CloseGeneration(*session);
    session->engine->SetActiveChannels(variant, ChannelsOf(up, down, qkv, o, num_layers));
  });
}

sol_error* sol_session_profile(sol_session* session, sol_profile* profile) {
  return Guard([&] {
    const Turn turn(session, "sol_session_profile");
    Profile(*session, profile);
  });
}

sol_error* sol_session_score(sol_session* session, const int32_t* tokens, size_t num_tokens, size_t context, const sol_generate_options* options,
                             sol_scores* scores) {
  return Guard([&] {
    const Turn turn(session, "sol_session_score");
    Score(*session, tokens, num_tokens, context, options, scores);
  });
}

sol_error* sol_session_plan(sol_session* session, const sol_generate_options* options) {
  return Guard([&] {
    const Turn turn(session, "sol_session_plan");
    std::unique_ptr<sol_rt::Decoder> decoder = DecoderOf(*session, options);
    CloseGeneration(*session);
    session->decoder = std::move(decoder);
  });
}

sol_error* sol_session_step(sol_session* session, int32_t token, const sol_rows* rows, sol_distribution* seen, sol_step* step) {
  return Guard([&] {
    const Turn turn(session, "sol_session_step");
    Step(*session, token, rows, seen, step);
  });
}

sol_error* sol_session_resume(sol_session* session, size_t length, const float* logits, size_t num_logits, const float* hidden, size_t num_hidden) {
  return Guard([&] {
    const Turn turn(session, "sol_session_resume");
    Resume(*session, length, logits, num_logits, hidden, num_hidden);
  });
}

}  // extern "C"
