// A bundle that is ready to run: its config, mapped weights and ONNX Runtime sessions, which all engines of the model share.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "budget/cost_model.h"
#include "bundle/bundle.h"
#include "bundle/weights.h"
#include "engine/ort/runtime.h"
#include "engine/policy_runner.h"
#include "engine/run/sessions.h"
#include "generate/settings/generation_config.h"
#include "text/chat_segments.h"
#include "text/tokenizer.h"

namespace sol_rt {

struct ModelOptions {
  sol_verify verify = SOL_VERIFY_SMALL;
  int32_t max_context = 0;  // a cap in tokens below the model's own; 0 for none
  std::string prefill;      // key of the variant that runs prompts; empty for the dense one
  Progress progress;
};

// The action that runs prompts through the variant of this key; of an empty one the dense action. Throws SOL_ERROR_USAGE if the bundle has no such variant.
Action PrefillAction(const Config& config, const std::string& key);

// For any number of threads at once.
class Model {
 public:
  // Throws SOL_ERROR_BUNDLE, SOL_ERROR_USAGE.
  static std::shared_ptr<Model> Load(std::shared_ptr<const Runtime> runtime, const std::string& folder, const ModelOptions& options);
  // Reads tokenizer, chat segments, generation settings and costs; `cost_table` may be empty. Called once, before the model is shared.
  void LoadParts(const std::string& cost_table);

  const Runtime& runtime() const { return *runtime_; }
  const Bundle& bundle() const { return bundle_; }
  const Config& config() const { return bundle_.config(); }
  const std::string& identity() const { return bundle_.identity(); }
  const Weights& weights() const { return weights_; }
  Sessions& sessions() { return sessions_; }
  bool native() const { return runtime_->native(); }
  int64_t max_context() const { return max_context_; }  // tokens, the cap included
  const Action& prefill() const { return prefill_; }    // the action that runs prompts

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }  // null if the core can't read the bundle's
  const std::string& no_tokenizer() const { return no_tokenizer_; }                 // why it is null
  const std::shared_ptr<const ChatSegments>& chat() const { return chat_; }         // null if the bundle has none that the core can use

  const GenerationConfig& generation_config() const { return generation_config_; }  // the model's own defaults

  // Costs may be replaced at any time: a generation keeps those that it began with. If they were measured on as many threads as this runtime has, the
  // operators of the process run with the settings of that measurement from then on.
  std::shared_ptr<const CostModel> cost() const;
  void SetCost(std::shared_ptr<const CostModel> cost);

  // Null if the bundle has no policy. The model must outlive the runner.
  std::unique_ptr<PolicyRunner> MakePolicyRunner();

 private:
  Model(std::shared_ptr<const Runtime> runtime, const std::string& folder, const ModelOptions& options);

  std::shared_ptr<const Runtime> runtime_;
  Bundle bundle_;
  Weights weights_;
  Sessions sessions_;
  int64_t max_context_;
  Action prefill_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string no_tokenizer_;
  std::shared_ptr<const ChatSegments> chat_;
  GenerationConfig generation_config_;
  mutable std::mutex cost_mutex_;
  std::shared_ptr<const CostModel> cost_;
};

}  // namespace sol_rt
