// Single runs and scores of the C interface: a host's own loop, and measurements.
#include <limits>

#include "api/border.h"
#include "api/options.h"
#include "api/session.h"
#include "base/error.h"
#include "generate/scoring.h"

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

void Forward(sol_session& session, const int32_t* tokens, size_t num_tokens, const char* tag, const sol_rows* given, sol_distribution* seen) {
  if (num_tokens > 0) RequirePointer(tokens, "sol_session_forward: tokens");
  if (seen != nullptr) sol_rt::RequireSized(seen, "sol_distribution");
  const sol_rt::ModelDims& dims = session.model->config().model;
  if (num_tokens > static_cast<size_t>(session.engine->max_context())) {
    throw sol_rt::Error(SOL_ERROR_CONTEXT, "forward: got " + std::to_string(num_tokens) + " tokens, expected at most " +
                                               std::to_string(session.engine->max_context()) + ", the model's context; run fewer");
  }
  sol_rt::Rows rows;
  if (given != nullptr) {
    sol_rows defaults{};
    defaults.num_logits = 1;
    const sol_rows wanted = sol_rt::ReadStruct(given, defaults, "sol_rows");
    if (wanted.num_logits < 1 || wanted.num_logits > num_tokens) {
      UsageFault("sol_rows: num_logits: got " + std::to_string(wanted.num_logits) + " for " + std::to_string(num_tokens) + " tokens, expected 1 to " +
                 std::to_string(num_tokens));
    }
    RequireRoom("sol_rows: logits_length", wanted.logits, wanted.logits_length, wanted.num_logits, dims.vocab_size);
    RequireRoom("sol_rows: hidden_length", wanted.hidden, wanted.hidden_length, wanted.num_logits, dims.hidden_size);
    rows = {wanted.num_logits, wanted.logits, wanted.hidden};
  }
  const Action action = tag == nullptr ? session.model->config().dense : Action::Parse(tag);
  CloseGeneration(session);
  const sol_rt::StepOutput output = session.engine->Forward(tokens, num_tokens, action, [&session] { return session.TakeCancel(); }, rows);
  if (seen != nullptr) sol_rt::FillStruct(sol_rt::DistributionOf(output.distribution), seen);
}

sol_rt::ActiveChannels ChannelsOf(const int32_t* up, const int32_t* down, const int32_t* qkv, const int32_t* o, size_t num_layers) {
  const auto counts = [&](const int32_t* given) { return given == nullptr ? std::vector<int32_t>() : std::vector<int32_t>(given, given + num_layers); };
  return {counts(up), counts(down), counts(qkv), counts(o)};
}

void Score(sol_session& session, const int32_t* tokens, size_t num_tokens, size_t context, const sol_generate_options* given, sol_scores* filled) {
  sol_rt::RequireSized(filled, "sol_scores");
  sol_scores scores = sol_rt::ReadStruct(filled, sol_scores{}, "sol_scores");
  if (num_tokens > 0) RequirePointer(tokens, "sol_session_score: tokens");
  const sol_generate_options options = sol_rt::ReadStruct(given, sol_rt::DefaultOptions(), "sol_generate_options");
  const sol_rt::Model& model = *session.model;
  const sol_rt::ModelDims& dims = model.config().model;
  sol_rt::RequireScorable(*session.engine, num_tokens, context);
  const size_t count = num_tokens - context;
  RequireRoom("sol_scores: logprobs_length", scores.logprobs, scores.logprobs_length, count, 1);
  RequireRoom("sol_scores: logits_length", scores.logits, scores.logits_length, count, dims.vocab_size);
  RequireRoom("sol_scores: hidden_length", scores.hidden, scores.hidden_length, count, dims.hidden_size);
  sol_rt::Dial dial = sol_rt::DialOf(session, options);
  if (dial.IsEmpty()) dial.budget = 1.0;
  CloseGeneration(session);
  const std::unique_ptr<sol_rt::Planner> planner = sol_rt::MakePlanner(model.config(), model.cost(), dial, sol_rt::PolicyOf(session));
  const sol_rt::Scores made = sol_rt::Score(*session.engine, *planner, model.prefill(), tokens, num_tokens, context,
                                            {scores.logprobs, scores.logits, scores.hidden}, [&session] { return session.TakeCancel(); });
  session.scored_tags.clear();
  session.scored_actions.clear();
  for (const Action& action : made.actions) session.scored_tags.push_back(action.Tag());
  for (const std::string& tag : session.scored_tags) session.scored_actions.push_back(tag.c_str());
  session.schedule = made.schedule;
  scores.actions = session.scored_actions.data();
  scores.num_actions = session.scored_actions.size();
  scores.schedule = session.schedule.c_str();
  scores.achieved_budget = made.achieved;
  scores.requested_budget = made.requested;
  scores.expected_loss = made.expected_loss.value_or(std::numeric_limits<double>::quiet_NaN());
  scores.floored = made.floored ? 1 : 0;
  sol_rt::FillStruct(scores, filled);
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

sol_error* sol_session_score(sol_session* session, const int32_t* tokens, size_t num_tokens, size_t context, const sol_generate_options* options,
                             sol_scores* scores) {
  return Guard([&] {
    const Turn turn(session, "sol_session_score");
    Score(*session, tokens, num_tokens, context, options, scores);
  });
}

}  // extern "C"
