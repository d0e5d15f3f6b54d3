#include "engine/engine.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"

namespace sol_rt {
namespace {

void SetCounts(const char* name, const std::vector<int32_t>& given, int32_t layers, int64_t most, std::vector<int32_t>& counts) {
  if (given.empty()) return;
  const auto [least, largest] = std::minmax_element(given.begin(), given.end());
  if (given.size() != static_cast<size_t>(layers) || *least < 1 || *largest > most) {
    UsageFault(std::string(name) + ": got " + std::to_string(given.size()) + " counts from " + std::to_string(*least) + " to " + std::to_string(*largest) +
               ", expected " + std::to_string(layers) + " counts from 1 to " + std::to_string(most));
  }
  counts = given;
}

const Variant& BundleVariant(const Config& config, const std::string& key) {
  const auto found = config.variants.find(key);
  if (found != config.variants.end()) return found->second;
  std::string known;
  for (const std::string& one : config.variant_order) known += (known.empty() ? "" : ", ") + one;
  UsageFault("variant " + key + ": not in this bundle, expected one of " + known);
}

// Place of an action's variant in the config's order.
int32_t PlaceOf(const Config& config, const Action& action) {
  const auto found = std::find(config.variant_order.begin(), config.variant_order.end(), action.Variant());
  return static_cast<int32_t>(found - config.variant_order.begin());
}

}  // namespace

void RequireNotInterrupted(const Interrupted& interrupted) {
  if (interrupted && interrupted()) throw Error(SOL_ERROR_CANCELLED, "cancelled; the cache keeps what was run");
}

bool AllFinite(const float* values, size_t count) {
  uint32_t bad = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, &values[i], sizeof(bits));
    bad |= (bits & 0x7f800000u) == 0x7f800000u;
  }
  return bad == 0;
}

void Engine::Truncate(int64_t length) {
  if (length < 0 || length > this->length()) {
    UsageFault("truncate: got " + std::to_string(length) + ", expected 0 to " + std::to_string(this->length()) + ", the tokens in the cache");
  }
  Keep(length);
  if (readers_.size() > static_cast<size_t>(length)) readers_.resize(static_cast<size_t>(length));
}

std::vector<int32_t> Engine::Readers(int64_t count) const {
  std::vector<int32_t> readers = readers_;
  readers.resize(static_cast<size_t>(count), PlaceOf(config_, config_.dense));
  return readers;
}

size_t Engine::DenseTokens() const {
  const int32_t dense = PlaceOf(config_, config_.dense);
  const auto other = std::find_if(readers_.begin(), readers_.end(), [dense](int32_t reader) { return reader != dense; });
  return other == readers_.end() ? tokens().size() : static_cast<size_t>(other - readers_.begin());
}

StepOutput Engine::Read(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) {
  struct Mark {
    Engine& engine;
    const Action& action;
    const size_t before;
    ~Mark() {  // also after a run that failed, which leaves a part of the tokens
      std::vector<int32_t>& readers = engine.readers_;
      if (readers.size() > before) readers.resize(before);
      if (action.Variant() == engine.config_.dense.Variant()) return;
      readers = engine.Readers(static_cast<int64_t>(before));
      readers.resize(static_cast<size_t>(engine.length()), PlaceOf(engine.config_, action));
    }
  };
  const Mark mark{*this, action, static_cast<size_t>(length())};
  return Forward(tokens, count, action, interrupted, rows);
}

StepOutput Engine::Forward(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) {
  Check(tokens, count);
  if (rows.count < 1 || rows.count > count) {
    UsageFault("forward: num_logits: got " + std::to_string(rows.count) + " for " + std::to_string(count) + " tokens, expected 1 to " +
               std::to_string(count));
  }
  RequireNotInterrupted(interrupted);
  return Run(tokens, count, action, interrupted, rows);
}

void Engine::Check(const int32_t* tokens, size_t count) const {
  const int32_t vocab = config_.model.vocab_size;
  if (count == 0) UsageFault("forward: tokens: got none, expected one or more");
  for (size_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab) {
      UsageFault("token " + std::to_string(tokens[i]) + ": expected a whole number from 0 to " + std::to_string(vocab - 1));
    }
  }
}

bool Engine::SharesRun(const RoundToken& mine, const RoundToken& other) const {
  const std::string variant = mine.action.Variant();
  return mine.action.SharesRead(other.action) && changed_.count(variant) == 0 && other.engine->changed_.count(variant) == 0 && SharesRunsWith(*other.engine);
}

size_t Engine::ForwardTogether(std::vector<RoundToken>& round) {
  std::vector<RoundToken*> left;
  for (RoundToken& token : round) {
    try {
      token.engine->Check(&token.token, 1);
      left.push_back(&token);
    } catch (...) {
      token.error = std::current_exception();
    }
  }
  size_t runs = 0;
  while (!left.empty()) {
    const RoundToken& first = *left.front();
    const auto rest = std::stable_partition(left.begin() + 1, left.end(), [&](const RoundToken* other) { return first.engine->SharesRun(first, *other); });
    const std::vector<RoundToken*> group(left.begin(), rest);
    left.erase(left.begin(), rest);
    runs += first.engine->RunTogether(group);
  }
  return runs;
}

size_t Engine::RunTogether(const std::vector<RoundToken*>& tokens) {
  for (RoundToken* const token : tokens) {
    try {
      token->output = token->engine->Run(&token->token, 1, token->action, nullptr, {});
    } catch (...) {
      token->error = std::current_exception();
    }
  }
  return tokens.size();
}

void Engine::SetActiveChannels(const std::string& variant, const ActiveChannels& counts) {
  Variant changed = BundleVariant(config_, variant);
  const ModelDims& model = config_.model;
  SetCounts("active_up", counts.up, model.num_layers, model.hidden_size, changed.active_up);
  SetCounts("active_down", counts.down, model.num_layers, model.intermediate_size, changed.active_down);
  SetCounts("active_qkv", counts.qkv, model.num_layers, model.hidden_size, changed.active_qkv);
  SetCounts("active_o", counts.o, model.num_layers, int64_t{model.num_heads} * model.head_dim, changed.active_o);
  changed_[variant] = std::move(changed);
  Forget(variant);
}

const Variant& Engine::VariantOf(const std::string& key) const {
  const auto found = changed_.find(key);
  return found == changed_.end() ? BundleVariant(config_, key) : found->second;
}

std::vector<int64_t> Engine::ChannelsOf(const Variant& variant) const {
  const ModelDims& model = config_.model;
  const std::pair<const std::vector<int32_t>*, int64_t> counts[] = {{&variant.active_up, model.hidden_size},
                                                                    {&variant.active_down, model.intermediate_size},
                                                                    {&variant.active_qkv, model.hidden_size},
                                                                    {&variant.active_o, int64_t{model.num_heads} * model.head_dim}};
  std::vector<int64_t> channels;
  for (const auto& [active, most] : counts) {
    for (const int32_t count : *active) channels.push_back(count % most);
  }
  return channels;
}

void Engine::RefuseNumbers(const std::string& bundle, const Action& action) const {
  throw Error(SOL_ERROR_NUMERIC, bundle + ": variant " + action.Variant() + " gave non-finite numbers at token " + std::to_string(length()) +
                                     "; check the bundle with `sol-rt verify`");
}

}  // namespace sol_rt
