// A bundle on ONNX Runtime: mapped weights and sessions, which all engines of a model share.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "bundle/bundle.h"
#include "bundle/weights.h"
#include "engine/engine_factory.h"
#include "engine/ort/run/sessions.h"
#include "engine/ort/runtime.h"
#include "engine/two_layer_policy.h"

namespace sol_rt {

class OrtModel final : public EngineFactory, public std::enable_shared_from_this<OrtModel> {
 public:
  // Maps the weights; sessions are made when first used. Throws SOL_ERROR_BUNDLE.
  OrtModel(std::shared_ptr<const Runtime> runtime, std::shared_ptr<Bundle> bundle);

  const Runtime& runtime() const { return *runtime_; }
  const Bundle& bundle() const { return *bundle_; }
  const Config& config() const { return bundle_->config(); }
  const std::string& identity() const { return bundle_->identity(); }
  const Weights& weights() const { return weights_; }
  Sessions& sessions() { return sessions_; }

  std::unique_ptr<Engine> MakeEngine(int64_t max_context) override;
  std::unique_ptr<PolicyRunner> MakePolicyRunner() override;
  bool native() const override { return runtime_->native(); }
  int32_t threads() const override { return runtime_->threads(); }
  uint64_t mapped_bytes() const override { return weights_.size(); }
  std::string Device() const override { return runtime_->Device(); }
  Tuning tuning() const override;
  void SetTuning(const Tuning& tuning, bool keep_copies) override;
  bool RoomForCopies() const override;

 private:
  std::shared_ptr<const Runtime> runtime_;
  std::shared_ptr<Bundle> bundle_;
  Weights weights_;
  Sessions sessions_;
  std::once_flag policy_read_;
  std::shared_ptr<const TwoLayerNetwork> policy_;  // null if the policy is another network
};

}  // namespace sol_rt
