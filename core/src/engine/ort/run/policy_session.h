// Runs policy.onnx once before each decode step, always on the CPU, and keeps its recurrent state between runs (docs/reference/bundle-details.md, section 5).
#pragma once

#include <cstdint>
#include <vector>

#include "engine/ort/api.h"
#include "engine/policy_runner.h"

namespace sol_rt {

class OrtModel;

class PolicySession : public PolicyRunner {
 public:
  // The model has a policy, and outlives the session. Throws SOL_ERROR_BUNDLE if the graph is not the one that the config describes.
  explicit PolicySession(OrtModel& model);

  void Reset() override;

 private:
  const std::vector<float>& Run(const PolicyQuestion& question) override;

  const OrtApi* api_;
  OrtSession* session_;
  std::vector<float> hidden_, scalars_, state_, logits_;
  int64_t token_ = 0, previous_ = 0, step_ = 0;
  std::vector<Owned<OrtValue>> values_;
  Owned<OrtIoBinding> binding_;
};

}  // namespace sol_rt
