// The decode loop: prefill the prompt; then, token by token, sample, pick an action, run it and charge it.
//
// The loop knows the interface `Engine` alone. A step has two halves, so that a host may run the graph between them.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "budget/cost_model.h"
#include "budget/planner.h"
#include "bundle/config/config.h"
#include "engine/engine.h"
#include "engine/policy_runner.h"
#include "generate/drafts/drafts.h"
#include "generate/live_dial.h"
#include "generate/sampling.h"
#include "generate/settings/generation_config.h"
#include "generate/token_mask.h"
#include "generate/trace/trace.h"
#include "text/text_writer.h"
#include "text/tokenizer.h"

namespace sol_rt {

// Parts of its session and model that a generation needs; all of them outlive the generation.
struct GenerationParts {
  Engine& engine;
  const Config& config;
  const std::string& identity;  // of the bundle
  std::shared_ptr<const Tokenizer> tokenizer;  // null: no text
  std::shared_ptr<const CostModel> cost;
  PolicyRunner* policy;  // null where the bundle has none
  LiveDial& live;
  DraftPace& pace;
  DraftActions& draft_actions;
};

// In a replay the dial is not used. `settings` are changes to `defaults`, in the order in which they apply.
struct GenerationRequest {
  std::vector<int32_t> prompt;  // in a replay it may be empty: the trace's
  GenerationConfig defaults;
  std::vector<std::pair<std::string, nlohmann::json>> settings;
  Dial dial;  // `prompt` is added to it
  AskMask mask;  // null: every token may be picked
  bool reuse_cache = false;
  bool lossless = false;  // dense steps, with drafts
  bool lookup = false;    // drafts under whatever the dial asks for
  std::string trace, replay;  // files; empty for none
};

enum class Finish { kNone, kStop, kLength };

struct GeneratedToken {
  int32_t token;
  std::string text;
  Action action;  // for the first token that of the prompt's run, which gives it
  double logprob, cost, relative_cost, achieved, requested, ms;
  Finish finish;
  std::vector<std::pair<int32_t, double>> likeliest;
};

struct GenerationResult {
  int64_t num_tokens, prompt_tokens, cached_tokens;
  std::string schedule, cost_model;
  double requested, achieved;
  std::optional<double> expected_loss;
  double prompt_tokens_per_second, tokens_per_second, first_token_ms;
  std::optional<double> fastest_rate;
  bool floored;
  int64_t first_difference;  // -1 where a replay agrees, or none runs
  Finish finish;
  int64_t drafted_tokens, accepted_tokens;
  std::optional<double> asked;  // the budget that the dial comes to before the first step; nothing under targets on the axes
  bool dense_prompt;            // as `PromptRun::dense`
};

// Tokens that the engine is to run next; none where a run before checked the draft of this step. They are valid until the step ends.
struct StepToRun {
  const int32_t* tokens;
  size_t count;
  Action action;
};

class Generation {
 public:
  // Checks everything and opens the trace; runs nothing. Throws SOL_ERROR_USAGE, SOL_ERROR_CONTEXT, SOL_ERROR_WRITE.
  Generation(const GenerationParts& parts, GenerationRequest request);

  // Runs at most `most` tokens of the prompt, before the first token, and returns how many are left: one at least, which the first token's step runs.
  // Throws SOL_ERROR_USAGE after that. `interrupted` is as in `Next`.
  size_t ReadPrompt(size_t most, const Interrupted& interrupted);
  // The next token: both halves, with the engine between them. `interrupted` is asked before each chunk of the prompt and around each decode step; where it
  // says true, SOL_ERROR_CANCELLED is thrown. After an error, and after a token whose `finish` is not kNone, the generation is over.
  const GeneratedToken& Next(const Interrupted& interrupted);
  // Inputs of the policy's run that the step needs first, where the host runs the policy's graph. Null if the step asks no policy. Called again before
  // `Begin`, it returns the same.
  const PolicyQuestion* BeginPolicy(const Interrupted& interrupted);
  // The first half: drops from the cache what the prompt does not keep, or chooses the action of the step. Called again, it returns the same step.
  // `round`: what other sessions take, whose steps run between the halves; null if none does. In a round nothing new is drafted: the shared read serves one
  // token of each session.
  const StepToRun& Begin(const Interrupted& interrupted, const std::vector<Action>* round = nullptr);
  // Runs the step's tokens, between its halves.
  StepOutput Run(const StepToRun& step, const Interrupted& interrupted);
  // The second half: takes the output of the tokens, charges the step, picks the token and asks what may follow it. Throws SOL_ERROR_USAGE if no step has
  // begun.
  const GeneratedToken& End(const std::function<StepOutput()>& output, const Interrupted& interrupted);

  void Close();  // completes the trace, which may throw SOL_ERROR_WRITE
  bool over() const { return over_; }
  GenerationResult Result() const;
  // Tokens at the end of the cache that are drafts: they may leave it again.
  int64_t unchecked() const;
  uint64_t DraftBytes() const { return drafts_ ? drafts_->Bytes() : 0; }
  bool stepping() const { return begun_ && running_ && !over_; }  // between the halves of a step after the prompt

 private:
  using Clock = std::chrono::steady_clock;

  void Enter(const Interrupted& interrupted);  // begins a step, unless one has begun
  StepSeen Seen() const;
  PromptSeen SeenPrompt(bool reuse_cache) const;
  size_t Left();  // tokens of the prompt that are not in the cache, from which the others are dropped
  StepToRun Prompt();
  StepToRun Step(const Interrupted& interrupted);
  size_t MostDrafts(const Action& action);
  // Drafts at most `most` tokens by steps of a cheaper action, which leave nothing in the cache.
  void DraftBySteps(const Action& action, size_t most, const Interrupted& interrupted);
  void DropDrafts();  // cuts off the cache what is not of the text
  double Achieved() const;
  void EndPrompt();
  void EndStep();
  void Pick();
  void Abandon();  // after an error
  TraceHeader Header() const;

  const GenerationParts parts_;
  std::vector<int32_t> history_;  // prompt and text
  size_t prompt_tokens_;
  GenerationConfig config_;
  PromptRun prompt_{};
  std::optional<Trace> replay_;
  std::unique_ptr<Planner> planner_;
  std::optional<double> asked_;  // the budget of the trace's header
  std::optional<TokenMask> mask_;
  std::optional<Drafts> drafts_;
  std::unique_ptr<Sampler> sampler_;
  std::unique_ptr<TextWriter> writer_;
  std::unique_ptr<TraceWriter> trace_;

  const std::vector<Action>* round_ = nullptr;  // as in `Begin`, while it runs
  std::optional<StepToRun> running_;  // what the engine runs between the halves of a step
  Clock::time_point start_, run_start_;  // of the step, and of the engine's run in it
  StepOutput output_;
  GeneratedToken generated_{};
  int64_t context_ = 0;  // tokens in the cache before the step of `generated_`
  int64_t processed_ = 0;  // tokens of prompt and text that have run: of the cache, all but drafts
  int64_t limit_;  // tokens
  double drafting_ = 0.0;  // cost of the steps that drafted the run
  double spent_ = 0.0, full_ = 0.0;  // of all tokens run, and of a dense step for each of the text
  double prefill_seconds_ = 0.0, first_token_ms_ = 0.0, decode_ms_ = 0.0;
  bool cut_ = false, begun_ = false, entered_ = false, over_ = false;
};

}  // namespace sol_rt
