#include "generate/generation.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <utility>

#include "base/error.h"
#include "budget/controller/controller.h"
#include "generate/model.h"
#include "generate/settings/json_repr.h"

namespace sol_rt {
namespace {

double Milliseconds(std::chrono::steady_clock::duration time) { return std::chrono::duration<double, std::milli>(time).count(); }

double Rate(int64_t count, double seconds) { return count > 0 && seconds > 0 ? static_cast<double>(count) / seconds : 0.0; }

bool StartsWith(const std::string& text, const char* beginning) { return text.rfind(beginning, 0) == 0; }

bool HasAxisTargets(const Dial& dial) { return dial.kv_density || dial.channel_density || dial.bits; }

void RequireTokens(const std::string& what, const std::vector<int32_t>& tokens, int32_t vocab_size) {
  for (size_t place = 0; place < tokens.size(); ++place) {
    if (tokens[place] >= 0 && tokens[place] < vocab_size) continue;
    UsageFault(what + ": got token " + std::to_string(tokens[place]) + " at place " + std::to_string(place) + ", expected 0 to " +
               std::to_string(vocab_size - 1));
  }
}

// The dial of dense steps, where it asks for nothing else.
Dial LosslessDial(Dial dial) {
  const bool dense = dial.budget.value_or(1.0) == 1.0 && dial.schedule.value_or("dense") == "dense" && !dial.own;
  dial.budget.reset();
  if (!dense || !dial.IsEmpty()) UsageFault("--lossless: gives the dense text; leave out budget, axes, rate, loss and schedule");
  dial.schedule = "dense";
  return dial;
}

[[noreturn]] void Cancelled() { throw Error(SOL_ERROR_CANCELLED, "the generation was cancelled; the session is ready for another one"); }

// Explains why the dial cannot be moved while the generation runs; empty if it can.
std::string FixedBecause(const Dial& dial, bool replay) {
  if (replay) return "a replay repeats the trace's actions";
  if (HasAxisTargets(dial)) return "this generation holds targets on the axes";
  const std::string schedule = dial.own ? "" : dial.schedule.value_or("");
  if (schedule == "dense" || StartsWith(schedule, "fixed:")) return "schedule " + schedule + " fixes the action";
  return "";
}

// Cost of the tokens after the first of a run.
double CostOfMore(const CostModel& cost, const Action& action, int64_t context, size_t tokens, const DraftPace& pace) {
  const double step = cost.Step(action, context);
  if (cost.InMilliseconds()) return step * (pace.Price(action, tokens) - 1.0);
  double more = 0.0;
  for (size_t i = 1; i < tokens; ++i) more += cost.Step(action, context + static_cast<int64_t>(i)) - cost.Line(action).fixed;
  return more;
}

std::vector<int32_t> EndTokens(const GenerationConfig& config) {
  std::vector<int32_t> tokens;
  for (const int64_t token : config.eos_token_id) {
    if (token <= std::numeric_limits<int32_t>::max()) tokens.push_back(static_cast<int32_t>(token));
  }
  return tokens;
}

}  // namespace

Generation::Generation(const GenerationParts& parts, GenerationRequest request)
    : parts_(parts), history_(std::move(request.prompt)), config_(std::move(request.defaults)) {
  const int32_t vocab_size = parts.config.model.vocab_size;
  if ((request.lossless || request.lookup) && !request.replay.empty()) {
    UsageFault(std::string(request.lossless ? "--lossless" : "--lookup") + ": a replay runs the trace's steps one by one; leave it out");
  }
  if (request.lossless) request.dial = LosslessDial(std::move(request.dial));
  if (!request.replay.empty()) {
    replay_ = ReadTrace(request.replay);
    for (auto setting = replay_->header.generation.begin(); setting != replay_->header.generation.end(); ++setting) {
      config_.Set(setting.key(), *setting);
    }
  }
  for (const auto& [name, value] : request.settings) config_.Set(name, value);
  if (!config_.seed && !config_.greedy()) config_.seed = std::random_device()();  // a number that a trace can hold
  if (replay_) config_.max_new_tokens = static_cast<int64_t>(replay_->records.size());
  config_.CheckVocabulary(vocab_size);
  if (!parts.tokenizer && !config_.stop_strings.empty()) {
    throw Error(SOL_ERROR_TEXT, "stop_strings: got " + std::to_string(config_.stop_strings.size()) +
                                    ", expected none, as the core has no tokenizer for this bundle; give an empty list and look for "
                                    "them in the host's own text");
  }

  if (replay_ && history_.empty()) {
    history_ = replay_->header.prompt_tokens;
    RequireTokens("replay: prompt", history_, vocab_size);
  }
  RequireTokens("prompt", history_, vocab_size);
  if (history_.empty()) UsageFault("prompt: got an empty one, expected at least one token");
  if (replay_ && history_ != replay_->header.prompt_tokens) {
    UsageFault("replay: the prompt is not the trace's; leave it out, or record the run again");
  }
  prompt_tokens_ = history_.size();
  const int64_t room = parts.engine.max_context() - static_cast<int64_t>(prompt_tokens_);
  if (room < 0 && !replay_) {
    throw Error(SOL_ERROR_CONTEXT, "prompt: got " + std::to_string(prompt_tokens_) + " tokens, expected at most " +
                                       std::to_string(parts.engine.max_context()) + ", the model's context; shorten it");
  }
  limit_ = std::min(config_.max_new_tokens, room + 1);  // the last token is returned without being processed, so it needs no room

  if (replay_) {
    if (replay_->header.config_sha256 != parts.identity) {
      UsageFault("replay: the trace was made with another bundle (" + BriefJson(replay_->header.bundle) + "); name that one");
    }
    if (replay_->records.empty()) UsageFault("replay: got a trace without tokens, expected one at least; record the run again");
    if (limit_ < config_.max_new_tokens) {
      throw Error(SOL_ERROR_CONTEXT, "replay: got a trace of " + std::to_string(prompt_tokens_ + replay_->records.size() - 1) + " tokens, expected at most " +
                                         std::to_string(parts.engine.max_context()) + ", the model's context; open the model with a larger one");
    }
    std::vector<ReplayedStep> steps;
    for (const TraceRecord& record : replay_->records) {
      if (record.token >= vocab_size) {
        UsageFault("replay: got token " + std::to_string(record.token) + " at step " + std::to_string(record.step) + " of the trace, expected 0 to " +
                   std::to_string(vocab_size - 1) + "; record the run again");
      }
      if (!record.action) continue;
      if (parts.config.variants.count(record.action->Variant()) == 0) {
        UsageFault("replay: " + record.action->Tag() + " is in the trace, its variant is not in the bundle");
      }
      // a cost that is the action's alone shows that no policy ran
      const double alone = parts.cost->Step(*record.action, static_cast<int64_t>(prompt_tokens_ + steps.size()));
      steps.push_back({*record.action, std::abs(record.cost - alone) > kCostEpsilon * alone});
    }
    const PromptRun prompt = FixedPrompt(parts.config, SeenPrompt(request.reuse_cache), PrefillAction(parts.config, replay_->header.prefill));
    asked_ = replay_->header.budget.value_or(1.0);
    planner_ = MakeReplayPlanner(parts.config, parts.cost, replay_->header.schedule, std::move(steps), *asked_, prompt);
  } else {
    request.dial.prompt = SeenPrompt(request.reuse_cache);
    planner_ = MakePlanner(parts.config, parts.cost, request.dial, parts.policy);
    if (request.lossless) parts.draft_actions.Offer(parts.config, *parts.cost, static_cast<int64_t>(prompt_tokens_));
    if (request.lossless || request.lookup) drafts_.emplace(parts.config.model, parts.pace, request.lossless ? &parts.draft_actions : nullptr);
    if (!HasAxisTargets(request.dial)) asked_ = planner_->Asked(static_cast<int64_t>(prompt_tokens_));
  }
  prompt_ = planner_->Prompt();
  writer_ = std::make_unique<TextWriter>(parts.tokenizer, history_, config_.stop_strings, EndTokens(config_));
  if (request.mask) mask_.emplace(std::move(request.mask), vocab_size);
  if (!request.trace.empty()) trace_ = std::make_unique<TraceWriter>(request.trace, Header());
  parts_.live.Open(FixedBecause(request.dial, replay_.has_value()), parts.cost->InMilliseconds());
}

const GeneratedToken& Generation::Next(const Interrupted& interrupted) {
  const StepToRun& step = Begin(interrupted);
  return End([&] { return Run(step, interrupted); }, interrupted);
}

void Generation::Enter(const Interrupted& interrupted) {
  if (over_) UsageFault("this generation is over; start another one");
  if (entered_) return;
  start_ = Clock::now();
  if (interrupted()) {
    Abandon();
    Cancelled();
  }
  entered_ = true;
  if (!begun_) return;
  if (parts_.live.TakeOver(*planner_)) DropDrafts();
  context_ = processed_;
}

const PolicyQuestion* Generation::BeginPolicy(const Interrupted& interrupted) {
  Enter(interrupted);
  if (!begun_ || running_) return nullptr;
  try {
    return planner_->Question(Seen());
  } catch (...) {
    Abandon();
    throw;
  }
}

const StepToRun& Generation::Begin(const Interrupted& interrupted, const std::vector<Action>* round) {
  Enter(interrupted);
  if (running_) return *running_;
  round_ = round;
  try {
    running_ = begun_ ? Step(interrupted) : Prompt();
  } catch (...) {
    Abandon();
    throw;
  }
  run_start_ = Clock::now();
  return *running_;
}

const GeneratedToken& Generation::End(const std::function<StepOutput()>& output, const Interrupted& interrupted) {
  if (over_ || !running_) UsageFault("no step has begun; call sol_session_begin_step first");
  try {
    output_ = output();
    if (begun_) {
      EndStep();
    } else {
      EndPrompt();
      begun_ = true;
    }
    running_.reset();
    entered_ = false;
    if (interrupted()) Cancelled();
    Pick();
    if (drafts_ && !drafts_->Follow(generated_.token)) parts_.engine.Truncate(processed_);
    if (trace_) {
      const int64_t step = static_cast<int64_t>(history_.size() - prompt_tokens_) - 1;
      const GeneratedToken& made = generated_;
      trace_->Write({step, made.token, made.text, step ? std::optional<Action>(made.action) : std::nullopt, context_, made.cost, made.relative_cost,
                     made.logprob, made.ms, made.achieved});
    }
  } catch (...) {
    Abandon();
    throw;
  }
  if (generated_.finish != Finish::kNone) Close();
  return generated_;
}

void Generation::Abandon() {
  over_ = true;
  DropDrafts();
  parts_.live.Close();
  trace_.reset();
}

void Generation::Close() {
  over_ = true;
  DropDrafts();
  parts_.live.Close();
  if (!trace_) return;
  const std::unique_ptr<TraceWriter> trace = std::move(trace_);
  trace->Close();
}

PromptSeen Generation::SeenPrompt(bool reuse_cache) const {
  PromptSeen seen{static_cast<int64_t>(prompt_tokens_)};
  if (!reuse_cache) return seen;
  const Engine& engine = parts_.engine;
  const auto difference = std::mismatch(history_.begin(), history_.end() - 1, engine.tokens().begin(), engine.tokens().end());
  seen.readers = engine.Readers(difference.first - history_.begin());  // the last token always runs: its logits are needed
  seen.engine = &engine;
  return seen;
}

size_t Generation::Left() {
  if (!cut_) parts_.engine.Truncate(prompt_.cached);
  cut_ = true;
  return prompt_tokens_ - parts_.engine.tokens().size();
}

size_t Generation::ReadPrompt(size_t most, const Interrupted& interrupted) {
  if (!over_ && (begun_ || running_)) UsageFault("sol_session_read_prompt: the prompt has run; call sol_session_next");
  Enter(interrupted);
  try {
    const size_t left = Left(), count = std::min(most, left - 1);
    if (count == 0) return left;
    const Clock::time_point begun = Clock::now();
    parts_.engine.Read(history_.data() + prompt_tokens_ - left, count, prompt_.action, interrupted);
    prefill_seconds_ += Milliseconds(Clock::now() - begun) / 1e3;
    return left - count;
  } catch (...) {
    Abandon();
    throw;
  }
}

StepToRun Generation::Prompt() {
  const size_t left = Left();
  return {history_.data() + prompt_tokens_ - left, left, prompt_.action};
}

void Generation::EndPrompt() {
  prefill_seconds_ += Milliseconds(Clock::now() - run_start_) / 1e3;
  sampler_ = std::make_unique<Sampler>(config_, parts_.config.model.vocab_size);  // its arrays are that long, which the graph has shown to be true
  context_ = processed_ = parts_.engine.length();
  generated_.action = prompt_.action;
  generated_.cost = generated_.relative_cost = 0.0;
  if (mask_ && !mask_->Ask(history_.data() + prompt_tokens_, 0)) {
    UsageFault("the host's mask: got a stop before the first token, expected a token that may come; allow a token that ends the text");
  }
}

StepSeen Generation::Seen() const {
  return {context_, generated_.token, output_.hidden, output_.distribution, static_cast<int64_t>(history_.size() - prompt_tokens_) - 1};
}

StepToRun Generation::Step(const Interrupted& interrupted) {
  if (drafts_ && drafts_->ready()) return {nullptr, 0, generated_.action};
  StepSeen seen = Seen();
  seen.round = round_;
  const Action action = planner_->Choose(seen);
  if (!drafts_) return {&generated_.token, 1, action};
  const size_t most = round_ == nullptr ? MostDrafts(action) : 0;
  const Action* const cheaper = drafts_->Propose(history_, action, most, mask_ ? mask_->Words() : nullptr);
  if (cheaper != nullptr) DraftBySteps(*cheaper, most, interrupted);
  return {drafts_->tokens().data(), drafts_->tokens().size(), action};
}

void Generation::DraftBySteps(const Action& action, size_t most, const Interrupted& interrupted) {
  const std::vector<int64_t>& ends = config_.eos_token_id;
  std::vector<int32_t> text = history_;
  const uint32_t* mask = mask_ ? mask_->Words() : nullptr;
  while (drafts_->Goes(most) && std::find(ends.begin(), ends.end(), text.back()) == ends.end()) {
    const Clock::time_point begun = Clock::now();
    Distribution next;
    try {
      next = parts_.engine.Forward(&text.back(), 1, action, interrupted).distribution;
    } catch (const Error& error) {
      if (error.code() != SOL_ERROR_NUMERIC) throw;
      break;  // the text needs nothing of this action
    }
    const Sampler::Picked picked = sampler_->Sample(next, text, std::exchange(mask, nullptr));  // what may follow a draft is not known
    sampler_->Count(picked.token, 1);
    drafting_ += parts_.cost->Step(action, static_cast<int64_t>(text.size()) - 1);
    drafts_->Add(picked.token, std::exp(picked.logprob), Milliseconds(Clock::now() - begun));
    text.push_back(picked.token);
  }
  for (size_t i = history_.size(); i < text.size(); ++i) sampler_->Count(text[i], -1);
  parts_.engine.Truncate(processed_);
}

size_t Generation::MostDrafts(const Action& action) {
  const int64_t wanted = limit_ - static_cast<int64_t>(history_.size() - prompt_tokens_), room = parts_.engine.max_context() - context_;
  const int64_t most = std::min({static_cast<int64_t>(parts_.engine.StepsAtOnce(action)), wanted, room});
  return most > 1 ? static_cast<size_t>(planner_->Repeats(action, context_, most)) - 1 : 0;
}

StepOutput Generation::Run(const StepToRun& step, const Interrupted& interrupted) {
  if (step.count == 0) return drafts_->Next();
  if (!begun_) return parts_.engine.Read(step.tokens, step.count, step.action, interrupted);
  if (step.count == 1) return parts_.engine.Forward(step.tokens, step.count, step.action, interrupted);
  parts_.engine.Forward(step.tokens, step.count, step.action, interrupted, drafts_->Buffers());
  return drafts_->First();
}

int64_t Generation::unchecked() const { return begun_ && !over_ && drafts_ ? parts_.engine.length() - processed_ : 0; }

void Generation::DropDrafts() {
  if (!drafts_ || !begun_) return;
  drafts_->Drop();
  if (parts_.engine.length() > processed_) parts_.engine.Truncate(processed_);
}

// A run of several tokens is charged at its first one. In bytes it reads the weights once, in milliseconds it costs what such runs took.
void Generation::EndStep() {
  ++processed_;
  generated_.action = running_->action;
  const Charge charge = planner_->Record(generated_.action, context_);
  generated_.cost = charge.cost;
  generated_.relative_cost = charge.relative;
  if (!drafts_) return;
  const double dense = charge.cost / charge.relative;
  const size_t tokens = running_->count;
  if (tokens > 0 && round_ == nullptr) parts_.pace.Took(generated_.action, tokens, Milliseconds(Clock::now() - run_start_));
  if (tokens != 1) {
    generated_.cost = tokens == 0 ? 0.0 : charge.cost + CostOfMore(*parts_.cost, generated_.action, context_, tokens, parts_.pace);
    generated_.cost += std::exchange(drafting_, 0.0);
    generated_.relative_cost = generated_.cost / dense;
  }
  spent_ += generated_.cost;
  full_ += dense;
}

double Generation::Achieved() const { return drafts_ && drafts_->drafted() > 0 ? spent_ / full_ : planner_->Achieved(); }

void Generation::Pick() {
  const Sampler::Picked picked = sampler_->Sample(output_.distribution, history_, mask_ ? mask_->Words() : nullptr);
  sampler_->Count(picked.token, 1);
  generated_.token = picked.token;
  generated_.logprob = picked.logprob;
  generated_.likeliest.clear();
  if (config_.top_logprobs > 0) generated_.likeliest = output_.distribution.Likeliest(static_cast<int32_t>(config_.top_logprobs));
  history_.push_back(picked.token);
  TextWriter::Piece piece = writer_->Add(picked.token);
  generated_.text = std::move(piece.text);
  generated_.finish = piece.stop ? Finish::kStop : Finish::kNone;
  const int64_t count = static_cast<int64_t>(history_.size() - prompt_tokens_);
  if (!piece.stop) {
    const bool complete = mask_ && !mask_->Ask(history_.data() + prompt_tokens_, static_cast<size_t>(count));
    if (complete || count == limit_) {
      generated_.text += writer_->Flush();
      generated_.finish = complete ? Finish::kStop : Finish::kLength;
    }
  }
  generated_.achieved = Achieved();
  generated_.requested = planner_->Requested();
  generated_.ms = Milliseconds(Clock::now() - start_);
  if (count == 1) {
    first_token_ms_ = generated_.ms;
  } else {
    decode_ms_ += generated_.ms;
  }
}

GenerationResult Generation::Result() const {
  const std::vector<int32_t> made(history_.begin() + static_cast<std::ptrdiff_t>(prompt_tokens_), history_.end());
  GenerationResult result{};
  result.num_tokens = static_cast<int64_t>(made.size());
  result.prompt_tokens = static_cast<int64_t>(prompt_tokens_);
  result.cached_tokens = begun_ ? prompt_.cached : 0;
  result.schedule = planner_->Schedule();
  result.cost_model = parts_.cost->Name();
  result.requested = planner_->Requested();
  result.achieved = Achieved();
  result.expected_loss = planner_->ExpectedLoss();
  result.prompt_tokens_per_second = Rate(begun_ ? result.prompt_tokens - prompt_.cached : 0, prefill_seconds_);
  result.tokens_per_second = Rate(result.num_tokens - 1, decode_ms_ / 1e3);
  result.first_token_ms = first_token_ms_;
  result.fastest_rate = planner_->FastestRate(parts_.engine.length() - unchecked());
  result.floored = planner_->Floored();
  result.first_difference = replay_ ? replay_->FirstDifference(made) : -1;
  result.drafted_tokens = drafts_ ? drafts_->drafted() : 0;
  result.accepted_tokens = drafts_ ? drafts_->accepted() : 0;
  result.asked = asked_;
  result.dense_prompt = prompt_.dense;
  result.finish = made.empty() ? Finish::kNone : generated_.finish;
  return result;
}

TraceHeader Generation::Header() const {
  const std::string prompt = parts_.tokenizer ? parts_.tokenizer->Decode(history_.data(), history_.size(), false) : "";
  const std::string prefill = prompt_.action == parts_.config.dense ? "" : prompt_.action.Variant();
  return {parts_.config.model.name, parts_.identity, history_, prompt, planner_->Schedule(), asked_, parts_.cost->Name(), config_.ForTrace(), prefill};
}

}  // namespace sol_rt
