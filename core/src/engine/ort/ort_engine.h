// The engine on ONNX Runtime's CPU sessions, with native operators or function bodies. Engines of one model share its sessions and its mapped weights.
#pragma once

#include <memory>

#include "engine/engine.h"

namespace sol_rt {

class OrtModel;  // ort_model.h: config, ONNX Runtime sessions, mapped weights

class OrtEngine final : public Engine {
 public:
  OrtEngine(std::shared_ptr<OrtModel> model, int64_t max_context);
  ~OrtEngine() override;

  const std::vector<int32_t>& tokens() const override;
  int64_t max_context() const override;
  int64_t Held(int64_t length) const override;
  size_t StepsAtOnce(const Action& action) const override;
  uint64_t PrivateBytes() const override;
  void Save(std::ostream& stream) const override;
  void Restore(std::istream& stream) override;

 protected:
  // After a rewind to a length that layers with a window no longer hold (cache/kv_cache.h), the next `Run` runs all tokens once more, as a prompt. If layers
  // have states (cache/states.h), it restores the last copy of them and runs the tokens after that, dense.
  void Keep(int64_t length) override;
  StepOutput Run(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) override;
  void Forget(const std::string& variant) override;
  bool SharesRunsWith(const Engine& other) const override;
  size_t RunTogether(const std::vector<RoundToken*>& tokens) override;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sol_rt
