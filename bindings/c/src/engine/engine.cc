#include "engine/engine.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <new>
#include <optional>
#include <utility>

#include "base/error.h"
#include "engine/model.h"
#include "engine/run/graph_runner.h"
#include "engine/run/kv_cache.h"
#include "engine/run/saved_cache.h"

namespace sol_rt {
namespace {

constexpr size_t kChunk = 512;
constexpr size_t kBodyChunk = 128;  // function bodies hold the attention matrix of a whole chunk

std::string Megabytes(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

}  // namespace

struct Engine::State {
  // How an action runs.
  struct Plan {
    GraphRunner* step;              // runs one token
    GraphRunner* batch;             // runs several, with attention to all
    std::vector<int64_t> channels;  // as StepBuffers::channels
  };

  explicit State(std::shared_ptr<Model> shared)
      : model(std::move(shared)),
        cache(model->config().model, model->config().kv, !model->native()),  // function bodies read all tokens and mask
        signature(StepSignature(model->config(), cache)) {}

  GraphRunner* Runner(const Variant& variant, bool sparse_tokens, bool sparse_channels) {
    // Native operators read the counts at every step; function bodies compute less where they get none.
    const Choices choices = model->native() ? Choices{true, true} : Choices{sparse_tokens, sparse_channels};
    std::unique_ptr<GraphRunner>& runner = runners[{variant.file, choices}];
    if (!runner) {
      OrtSession* const session = model->sessions().Get(variant.file, signature);
      if (!buffers) buffers.emplace(model->runtime(), model->config());
      runner = std::make_unique<GraphRunner>(variant.file, session, model->runtime(), cache, *buffers, choices);
    }
    return runner.get();
  }

  const Plan& Prepare(const Action& action) {
    auto found = plans.find(action);
    if (found == plans.end()) found = plans.emplace(action, MakePlan(action)).first;
    const Plan& plan = found->second;
    if (&plan != last_plan) {
      std::copy(plan.channels.begin(), plan.channels.end(), buffers->channels.begin());
      last_plan = &plan;
    }
    return plan;
  }

  Plan MakePlan(const Action& action) {
    const Config& config = model->config();
    const auto found = config.variants.find(action.Variant());
    if (found == config.variants.end()) {
      std::string known;
      for (const std::string& key : config.variant_order) known += (known.empty() ? "" : ", ") + key;
      UsageFault("variant " + action.Variant() + ": not in this bundle, expected one of " + known);
    }
    const Variant& variant = found->second;
    Plan plan{nullptr, nullptr, {}};
    // In the order of kChannelInputs; 0 for all channels, which spares sorting them.
    const std::pair<const std::vector<int32_t>*, int64_t> counts[] = {{&variant.active_up, config.model.hidden_size},
                                                                      {&variant.active_down, config.model.intermediate_size},
                                                                      {&variant.active_qkv, config.model.hidden_size},
                                                                      {&variant.active_o, int64_t{config.model.num_heads} * config.model.head_dim}};
    for (const auto& [active, most] : counts) {
      for (const int32_t count : *active) plan.channels.push_back(count % most);
    }
    const bool sparse = std::any_of(plan.channels.begin(), plan.channels.end(), [](int64_t count) { return count != 0; });
    plan.step = Runner(variant, action.kv < 100, sparse);
    plan.batch = Runner(variant, false, sparse);
    return plan;
  }

  void EnsureCapacity(int64_t wanted) {
    if (wanted > model->max_context()) {
      throw Error(SOL_ERROR_CONTEXT, "context: got " + std::to_string(wanted) + " tokens, expected at most " + std::to_string(model->max_context()) + " (" +
                                         Megabytes(cache.BytesAt(cache.capacity())) + " of KV cache in use); shorten the prompt or the answer");
    }
    if (wanted <= cache.capacity()) return;
    const int64_t capacity = cache.CapacityFor(wanted);
    for (auto& [key, runner] : runners) runner->Forget();
    try {
      cache.Resize(capacity, static_cast<int64_t>(tokens.size()));
    } catch (const std::bad_alloc&) {
      throw Error(SOL_ERROR_CONTEXT, "context: a KV cache of " + std::to_string(wanted) + " tokens needs " + Megabytes(cache.BytesAt(capacity)) +
                                         ", more than is free; shorten the prompt");
    }
  }

  void RequireFinite(const Distribution& distribution, const Action& action, int64_t appended) {
    const auto hidden_size = static_cast<int32_t>(buffers->hidden.size());
    if (distribution.finite() && MakeDistribution(buffers->hidden.data(), hidden_size).finite()) return;
    const auto length = static_cast<int64_t>(tokens.size());
    cache.Wipe(length, length + appended);
    throw Error(SOL_ERROR_NUMERIC, model->bundle().path() + ": variant " + action.Variant() + " gave non-finite numbers at token " + std::to_string(length) +
                                       "; check the bundle with `sol-rt verify`");
  }

  Distribution Seen() const { return MakeDistribution(buffers->logits.data(), static_cast<int32_t>(buffers->logits.size())); }

  // The cache has room for the token.
  Distribution Step(int32_t token, const Action& action) {
    const auto length = static_cast<int64_t>(tokens.size());
    GraphRunner* const runner = Prepare(action).step;
    buffers->token = token;
    buffers->SetLengths(length, 1);
    buffers->SetPages(action.Pages(length, model->config().kv.page_size));
    runner->Step();
    model->weights().RequireUnchanged();  // afterwards, so that no token comes of weights that were just written to
    const Distribution distribution = Seen();
    RequireFinite(distribution, action, 1);
    tokens.push_back(token);
    cache.Discard(length + 1);
    return distribution;
  }

  // The cache has room for the tokens.
  Distribution Batch(const int32_t* given, size_t count, const Action& action, const std::function<bool()>& check) {
    model->weights().RequireUnchanged();
    GraphRunner* const runner = Prepare(action).batch;
    buffers->SetPages(kAllPages);  // kernels read it if the last chunk is one token
    const size_t most = model->native() ? kChunk : kBodyChunk;
    Distribution distribution;
    for (size_t start = 0; start < count; start += most) {
      if (start > 0) RequireNotInterrupted(check);
      const size_t end = std::min(count, start + most);
      chunk.assign(given + start, given + end);
      buffers->SetLengths(static_cast<int64_t>(tokens.size()), static_cast<int64_t>(chunk.size()));
      runner->Batch(chunk);
      distribution = Seen();
      RequireFinite(distribution, action, static_cast<int64_t>(chunk.size()));
      tokens.insert(tokens.end(), given + start, given + end);
      cache.Discard(static_cast<int64_t>(tokens.size()));
    }
    model->weights().RequireUnchanged();
    return distribution;
  }

  // Runs all tokens once more, as a prompt, if a rewind went further back than layers with a window hold.
  void FollowUp(const std::function<bool()>& check) {
    if (cache.Holds(static_cast<int64_t>(tokens.size()))) return;
    const std::vector<int32_t> again = std::exchange(tokens, {});
    cache.Forget();
    if (!again.empty()) Batch(again.data(), again.size(), model->config().dense, check);
  }

  static void RequireNotInterrupted(const std::function<bool()>& check) {
    if (check && check()) throw Error(SOL_ERROR_CANCELLED, "cancelled; the cache keeps what was run");
  }

  std::shared_ptr<Model> model;
  KvCache cache;
  std::optional<StepBuffers> buffers;  // made when a graph has shown that the config's sizes are true
  Signature signature;
  std::map<std::pair<std::string, Choices>, std::unique_ptr<GraphRunner>> runners;
  std::map<Action, Plan> plans;
  const Plan* last_plan = nullptr;  // the plan whose channels are in the step buffers
  std::vector<int32_t> tokens;
  std::vector<int64_t> chunk;
};

Engine::Engine(std::shared_ptr<Model> model) : state_(std::make_unique<State>(std::move(model))) {}
Engine::~Engine() = default;

const Model& Engine::model() const { return *state_->model; }
int64_t Engine::length() const { return static_cast<int64_t>(state_->tokens.size()); }
const std::vector<int32_t>& Engine::tokens() const { return state_->tokens; }
int64_t Engine::max_context() const { return state_->model->max_context(); }

int64_t Engine::Held(int64_t length) const { return state_->cache.Holds(length) ? length : 0; }

void Engine::Truncate(int64_t length) {
  if (length < 0 || length > this->length()) {
    UsageFault("truncate: got " + std::to_string(length) + ", expected 0 to " + std::to_string(this->length()) + ", the tokens in the cache");
  }
  state_->tokens.resize(static_cast<size_t>(length));
}

StepOutput Engine::Forward(const int32_t* tokens, size_t count, const Action& action, const std::function<bool()>& interrupted) {
  const int32_t vocab = state_->model->config().model.vocab_size;
  if (count == 0) UsageFault("forward: tokens: got none, expected one or more");
  for (size_t i = 0; i < count; ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab) {
      UsageFault("token " + std::to_string(tokens[i]) + ": expected a whole number from 0 to " + std::to_string(vocab - 1));
    }
  }
  State::RequireNotInterrupted(interrupted);
  state_->FollowUp(interrupted);
  state_->EnsureCapacity(length() + static_cast<int64_t>(count));
  StepOutput output;
  output.distribution = count == 1 ? state_->Step(tokens[0], action) : state_->Batch(tokens, count, action, interrupted);
  output.hidden = state_->buffers->hidden.data();
  return output;
}

uint64_t Engine::PrivateBytes() const { return state_->cache.BytesAt(state_->cache.capacity()) + (state_->buffers ? state_->buffers->Bytes() : 0); }

void Engine::Save(std::ostream& stream) const { SaveCache(stream, *state_->model, state_->cache, state_->tokens); }

void Engine::Restore(std::istream& stream) {
  state_->tokens.clear();
  state_->cache.Forget();
  state_->tokens = RestoreCache(stream, *state_->model, state_->cache, [this](int64_t tokens) { state_->EnsureCapacity(tokens); });
}

}  // namespace sol_rt
