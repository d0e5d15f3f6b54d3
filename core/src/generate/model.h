// A bundle that is ready to generate: its config, tokenizer, settings and costs, and the factory of its engines.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>

#include "budget/cost_model.h"
#include "bundle/bundle.h"
#include "engine/engine_factory.h"
#include "generate/settings/generation_config.h"
#include "text/chat_segments.h"
#include "text/tokenizer.h"

namespace sol_rt {

struct ModelOptions {
  int32_t max_context = 0;  // a cap in tokens below the model's own; 0 for none
  std::string prefill;      // key of the variant that runs prompts; empty: of a generation the dial chooses it, else it is the dense one
  std::string cost_table;   // file of measured costs; empty: costs are bytes
};

// The action that runs prompts through the variant of this key; of an empty one the dense action. Throws SOL_ERROR_USAGE if the bundle has no such variant.
Action PrefillAction(const Config& config, const std::string& key);

// For any number of threads at once.
class Model {
 public:
  // `factory` may be null: then all sessions are on engines of the host's. Throws SOL_ERROR_BUNDLE, SOL_ERROR_USAGE.
  Model(std::shared_ptr<Bundle> bundle, std::shared_ptr<EngineFactory> factory, const ModelOptions& options);

  const Bundle& bundle() const { return *bundle_; }
  const Config& config() const { return bundle_->config(); }
  const std::string& identity() const { return bundle_->identity(); }
  EngineFactory* factory() const { return factory_.get(); }
  int64_t max_context() const { return max_context_; }  // tokens, the cap included
  const Action& prefill() const { return prefill_; }    // the action that runs prompts, where the dial doesn't choose
  bool prefill_is_named() const { return prefill_is_named_; }

  const std::shared_ptr<const Tokenizer>& tokenizer() const { return tokenizer_; }  // null if the core can't read the bundle's
  const std::string& no_tokenizer() const { return no_tokenizer_; }                 // why it is null
  const std::shared_ptr<const ChatSegments>& chat() const { return chat_; }         // null if the bundle has none that the core can use

  const GenerationConfig& generation_config() const { return generation_config_; }  // the model's own defaults

  // Costs may be replaced at any time: a generation keeps those that it began with. If they were measured on as many threads as the factory's engines have,
  // the operators of the process run with the settings of that measurement from then on.
  std::shared_ptr<const CostModel> cost() const;
  void SetCost(std::shared_ptr<const CostModel> cost);

 private:
  void ReadText();

  std::shared_ptr<Bundle> bundle_;
  std::shared_ptr<EngineFactory> factory_;
  int64_t max_context_;
  Action prefill_;
  bool prefill_is_named_;
  std::shared_ptr<const Tokenizer> tokenizer_;
  std::string no_tokenizer_;
  std::shared_ptr<const ChatSegments> chat_;
  GenerationConfig generation_config_;
  mutable std::mutex cost_mutex_;
  std::shared_ptr<const CostModel> cost_;
};

}  // namespace sol_rt
