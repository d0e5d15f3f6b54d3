// A policy whose graph the host runs between two calls: it holds the host's answer for the step that follows.
#pragma once

#include <utility>
#include <vector>

#include "base/error.h"
#include "bundle/config/config.h"
#include "engine/policy_runner.h"

namespace sol_rt {

class HostPolicy final : public PolicyRunner {
 public:
  explicit HostPolicy(const PolicySpec& spec) : PolicyRunner(spec.file, spec.scalars.size()) {}
  void Reset() override {
    first_ = true;
    answered_ = false;
  }
  bool first() const { return first_; }  // true if the run begins with a state of zeros
  void Answer(std::vector<float> logits) {
    logits_ = std::move(logits);
    answered_ = true;
    first_ = false;
  }

 private:
  const std::vector<float>& Run(const PolicyQuestion&) override {
    if (!std::exchange(answered_, false)) {
      UsageFault("schedule sol: the host runs this model's policy; call sol_session_begin_policy and sol_session_end_policy before each step");
    }
    return logits_;
  }

  bool first_ = true, answered_ = false;
  std::vector<float> logits_;
};

}  // namespace sol_rt
