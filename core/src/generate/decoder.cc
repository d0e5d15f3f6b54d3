#include "generate/decoder.h"

#include "base/error.h"

namespace sol_rt {

void Decoder::Continue(const StepOutput& output) {
  output_ = output;
  steps_ = 0;
  ready_ = true;
}

void Decoder::Resume(int64_t length, const float* logits, const float* hidden) {
  const ModelDims& model = engine_.config().model;
  if (length < 1) UsageFault("resume: got " + std::to_string(length) + ", expected 1 to the tokens in the cache");
  if (!AllFinite(logits, static_cast<size_t>(model.vocab_size)) || !AllFinite(hidden, static_cast<size_t>(model.hidden_size))) {
    UsageFault("resume: got numbers that are not finite, expected the results of token " + std::to_string(length));
  }
  engine_.Truncate(length);
  logits_.assign(logits, logits + model.vocab_size);
  hidden_.assign(hidden, hidden + model.hidden_size);
  Continue({hidden_.data(), MakeDistribution(logits_.data(), model.vocab_size)});
}

const StepOutput& Decoder::output() const {
  if (!ready_) UsageFault("step: got no results of the token before; run it with sol_session_forward, or hand them over to sol_session_resume");
  return output_;
}

StepRecord Decoder::Step(int32_t token, const Interrupted& interrupted, const Rows& rows) {
  const StepOutput& before = output();
  const int64_t context = engine_.length();
  const Action action = planner_->Choose({context, token, before.hidden, before.distribution, steps_});
  ready_ = false;  // a run that fails has overwritten the results
  output_ = engine_.Forward(&token, 1, action, interrupted, rows);
  ready_ = true;
  ++steps_;
  return {action, context, planner_->Record(action, context)};
}

}  // namespace sol_rt
