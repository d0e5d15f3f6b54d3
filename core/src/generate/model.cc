#include "generate/model.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "base/error.h"

namespace sol_rt {
Action PrefillAction(const Config& config, const std::string& key) {
  if (key.empty()) return config.dense;
  if (config.variants.count(key) == 0) {
    std::string has;
    for (const std::string& known : config.variant_order) has += (has.empty() ? "" : ", ") + known;
    UsageFault("--prefill: got " + Brief(key) + ", expected one of the bundle's variants: " + has);
  }
  return Action::Parse("k100-" + key);
}

Model::Model(std::shared_ptr<Bundle> bundle, std::shared_ptr<EngineFactory> factory, const ModelOptions& options)
    : bundle_(std::move(bundle)), factory_(std::move(factory)), max_context_(config().model.max_context), prefill_(PrefillAction(config(), options.prefill)),
      prefill_is_named_(!options.prefill.empty()) {
  if (options.max_context < 0) {
    UsageFault("context size: got " + std::to_string(options.max_context) + ", expected 1 or more tokens, or 0 for the model's own");
  }
  if (options.max_context > 0) max_context_ = std::min<int64_t>(max_context_, options.max_context);
  ReadText();
  const std::vector<int32_t>& ends = config().model.eos_token_ids;
  generation_config_.eos_token_id.assign(ends.begin(), ends.end());
  if (bundle_->Has(kGenerationConfigFile)) generation_config_.ApplyFile(bundle_->Read(kGenerationConfigFile), bundle_->Path(kGenerationConfigFile));
  SetCost(options.cost_table.empty() ? MakeBytesCost(config()) : ReadMeasuredCost(config(), identity(), options.cost_table));
}

void Model::ReadText() {
  const ModelDims& dims = config().model;
  if (bundle_->Has(kTokenizerFile)) {
    try {
      tokenizer_ = Tokenizer::FromJson(bundle_->Read(kTokenizerFile), bundle_->Path(kTokenizerFile), dims.eos_token_ids);
    } catch (const Error& error) {
      if (error.code() != SOL_ERROR_TEXT) throw;
      no_tokenizer_ = error.what();  // the host may have a tokenizer of its own
    }
    if (tokenizer_ && tokenizer_->Size() > dims.vocab_size) {
      BundleFault(bundle_->path(), kTokenizerFile, std::to_string(tokenizer_->Size()) + " tokens", "at most the model's " + std::to_string(dims.vocab_size),
                  "export again with the model's own tokenizer");
    }
  } else {
    no_tokenizer_ = bundle_->path() + ": got no tokenizer.json, expected one; encode with a tokenizer of the host's own";
  }
  if (tokenizer_ && bundle_->Has(kChatFile)) {
    chat_ = ChatSegments::FromJson(bundle_->Read(kChatFile), bundle_->Path(kChatFile), tokenizer_);
  }
}

std::shared_ptr<const CostModel> Model::cost() const {
  const std::lock_guard<std::mutex> lock(cost_mutex_);
  return cost_;
}

void Model::SetCost(std::shared_ptr<const CostModel> cost) {
  const std::lock_guard<std::mutex> lock(cost_mutex_);
  cost_ = std::move(cost);
  std::optional<Tuning> tuning = factory_ && factory_->native() ? cost_->TuningFor(factory_->threads()) : std::nullopt;
  if (!tuning) return;
  tuning->copies = tuning->copies && factory_->RoomForCopies();
  factory_->SetTuning(*tuning);
}

}  // namespace sol_rt
