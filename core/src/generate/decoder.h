// One run of decode steps on an engine: the schedule picks the action, the engine runs it, the controller charges it.
// The caller says which tokens are processed.
#pragma once

#include <memory>
#include <vector>

#include "budget/planner.h"
#include "engine/engine.h"

namespace sol_rt {

struct StepRecord {
  Action action;
  int64_t context;  // tokens in the cache before the step
  Charge charge;
};

class Decoder {
 public:
  Decoder(Engine& engine, std::unique_ptr<Planner> planner) : engine_(engine), planner_(std::move(planner)) {}

  Planner& planner() { return *planner_; }

  // The account continues over these three; the schedule's count of steps begins anew.

  // `output` is that of the last token in the cache, in the engine's buffers.
  void Continue(const StepOutput& output);
  // Keeps the first `length` tokens of the cache, 1 or more. Logits [vocab] and hidden [hidden] are those of the last of them; they are copied. Throws
  // SOL_ERROR_USAGE beyond the tokens in the cache, and for numbers that are not finite.
  void Resume(int64_t length, const float* logits, const float* hidden);
  // Someone else used the engine: the next step needs one of the others first.
  void Interrupt() { ready_ = false; }

  // The distribution of the token that the next step is to process. Throws SOL_ERROR_USAGE after `Interrupt`.
  const StepOutput& output() const;
  StepRecord Step(int32_t token, const Interrupted& interrupted, const Rows& rows = {});

 private:
  Engine& engine_;
  const std::unique_ptr<Planner> planner_;
  StepOutput output_;
  std::vector<float> logits_, hidden_;  // of `Resume`
  int64_t steps_ = 0;
  bool ready_ = false;
};

}  // namespace sol_rt
