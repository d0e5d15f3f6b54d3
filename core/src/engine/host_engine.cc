#include "engine/host_engine.h"

#include <algorithm>
#include <utility>

#include "base/error.h"

namespace sol_rt {

HostEngine::HostEngine(const Config& config, std::string path, int64_t max_context, HostCalls calls)
    : Engine(config), path_(std::move(path)), max_context_(max_context), calls_(std::move(calls)) {}

int64_t HostEngine::Held(int64_t length) const { return !calls_.held || calls_.held(length) >= length ? length : 0; }

const HostRun& HostEngine::Begin(const int32_t* tokens, size_t count, const Action& action, size_t rows) {
  const Variant& variant = VariantOf(action.Variant());
  if (length() + static_cast<int64_t>(count) > max_context_) {
    throw Error(SOL_ERROR_CONTEXT, "context: got " + std::to_string(length() + static_cast<int64_t>(count)) + " tokens, expected at most " +
                                       std::to_string(max_context_) + "; shorten the prompt or the answer");
  }
  const KvLayout& kv = config().kv;
  run_.tokens.assign(tokens, tokens + count);
  run_.past = length();
  run_.action = action;
  run_.graph = variant.file;
  run_.kv_pages.assign(static_cast<size_t>(config().model.num_layers), count == 1 && rows == 1 ? action.Pages(length(), kv.page_size) : kAllPages);
  for (const int32_t layer : kv.dense_layers) run_.kv_pages[static_cast<size_t>(layer)] = kAllPages;
  run_.channels = ChannelsOf(variant);
  run_.rows = rows;
  return run_;
}

StepOutput HostEngine::End(const float* logits, const float* hidden) {
  const auto vocab = static_cast<size_t>(config().model.vocab_size), hidden_size = static_cast<size_t>(config().model.hidden_size);
  if (!AllFinite(logits, run_.rows * vocab) || !AllFinite(hidden, run_.rows * hidden_size)) RefuseNumbers(path_, run_.action);
  tokens_.insert(tokens_.end(), run_.tokens.begin(), run_.tokens.end());
  const size_t last = run_.rows - 1;
  return {hidden + last * hidden_size, MakeDistribution(logits + last * vocab, static_cast<int32_t>(vocab))};
}

StepOutput HostEngine::EndCopied(const float* logits, const float* hidden) {
  logits_.assign(logits, logits + config().model.vocab_size);
  hidden_.assign(hidden, hidden + config().model.hidden_size);
  return End(logits_.data(), hidden_.data());
}

StepOutput HostEngine::Run(const int32_t* tokens, size_t count, const Action& action, const Interrupted&, const Rows& rows) {
  if (driven()) UsageFault("forward: got an engine of the host without this callback; run steps between sol_session_begin_step and sol_session_end_step");
  const HostRun& run = Begin(tokens, count, action, rows.count);
  const auto vocab = static_cast<size_t>(config().model.vocab_size), width = static_cast<size_t>(config().model.hidden_size);
  // Many rows go to the caller's own memory at once. The last one is kept here, for the step that follows.
  const bool direct = rows.count > 1 && rows.logits != nullptr && rows.hidden != nullptr;
  if (!direct) {
    logits_.resize(rows.count * vocab);
    hidden_.resize(rows.count * width);
  }
  float* const logits = direct ? rows.logits : logits_.data();
  float* const hidden = direct ? rows.hidden : hidden_.data();
  calls_.forward(run, logits, hidden);
  StepOutput output = End(logits, hidden);
  if (count > 1) Report(count, count);
  if (direct) {
    logits_.assign(logits + (rows.count - 1) * vocab, logits + rows.count * vocab);
    hidden_.assign(hidden + (rows.count - 1) * width, hidden + rows.count * width);
    return {hidden_.data(), MakeDistribution(logits_.data(), config().model.vocab_size)};
  }
  if (rows.logits != nullptr) std::copy(logits_.begin(), logits_.end(), rows.logits);
  if (rows.hidden != nullptr) std::copy(hidden_.begin(), hidden_.end(), rows.hidden);
  return output;
}

void HostEngine::Save(std::ostream&) const { UsageFault("sol_session_save: the host's engine holds the cache of this session; save it there"); }

void HostEngine::Restore(std::istream&) { UsageFault("sol_session_restore: the host's engine holds the cache of this session; restore it there"); }

}  // namespace sol_rt
