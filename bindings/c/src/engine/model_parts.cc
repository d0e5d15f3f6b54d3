// Parts of a model besides graphs and weights: tokenizer, chat segments, generation settings, costs.
#include "base/error.h"
#include "engine/model.h"

namespace sol_rt {
namespace {

constexpr const char* kTokenizerFile = "tokenizer.json";
constexpr const char* kChatFile = "chat_segments.json";

}  // namespace

void Model::LoadParts(const std::string& cost_table) {
  const ModelDims& dims = config().model;
  if (bundle_.Has(kTokenizerFile)) {
    try {
      tokenizer_ = Tokenizer::FromJson(bundle_.Read(kTokenizerFile), bundle_.Path(kTokenizerFile), dims.eos_token_ids);
    } catch (const Error& error) {
      if (error.code() != SOL_ERROR_TEXT) throw;
      no_tokenizer_ = error.what();  // the host may have a tokenizer of its own
    }
    if (tokenizer_ && tokenizer_->Size() > dims.vocab_size) {
      BundleFault(bundle_.path(), kTokenizerFile, std::to_string(tokenizer_->Size()) + " tokens", "at most the model's " + std::to_string(dims.vocab_size),
                  "export again with the model's own tokenizer");
    }
  } else {
    no_tokenizer_ = bundle_.path() + ": got no tokenizer.json, expected one; encode with a tokenizer of the host's own";
  }
  if (tokenizer_ && bundle_.Has(kChatFile)) {
    chat_ = ChatSegments::FromJson(bundle_.Read(kChatFile), bundle_.Path(kChatFile), tokenizer_);
  }
  generation_config_.eos_token_id.assign(dims.eos_token_ids.begin(), dims.eos_token_ids.end());
  if (bundle_.Has(kGenerationConfigFile)) generation_config_.ApplyFile(bundle_.Read(kGenerationConfigFile), bundle_.Path(kGenerationConfigFile));
  SetCost(cost_table.empty() ? MakeBytesCost(config()) : ReadMeasuredCost(config(), identity(), cost_table));
}

}  // namespace sol_rt
