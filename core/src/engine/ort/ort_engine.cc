#include "engine/ort/ort_engine.h"

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <new>
#include <optional>
#include <utility>

#include "base/error.h"
#include "common/session_rows.h"
#include "cpu/few_tokens.h"
#include "engine/ort/cache/kv_cache.h"
#include "engine/ort/cache/saved_cache.h"
#include "engine/ort/cache/states.h"
#include "engine/ort/ort_model.h"
#include "engine/ort/run/graph_runner.h"

namespace sol_rt {
namespace {

constexpr size_t kChunk = 512;
constexpr size_t kBodyChunk = 128;  // function bodies hold the attention matrix of a whole chunk
constexpr int64_t kCopyEvery = 64;  // decode steps between two copies of states

// Says which sessions share the runs of this thread, while it lives.
class SharedRun {
 public:
  explicit SharedRun(const SolSessionRows& rows) { Share(&rows); }
  ~SharedRun() { Share(nullptr); }
  SharedRun(const SharedRun&) = delete;
  SharedRun& operator=(const SharedRun&) = delete;

 private:
  static void Share([[maybe_unused]] const SolSessionRows* rows) {
#ifdef SOL_RT_OPERATORS
    SolOpsShareRuns(rows);
#endif
  }
};

std::string Megabytes(uint64_t bytes) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.0f MB", static_cast<double>(bytes) / 1e6);
  return text;
}

}  // namespace

struct OrtEngine::State {
  // Runners and active channels of an action.
  struct Plan {
    GraphRunner* step;              // runs one token
    GraphRunner* batch;             // runs several, with attention to all
    std::vector<int64_t> channels;  // as StepBuffers::channels
  };

  State(std::shared_ptr<OrtModel> shared, int64_t context, const OrtEngine& owner)
      : engine(owner),
        model(std::move(shared)),
        max_context(context),
        cache(model->config().model, model->config().kv, !model->native()),  // function bodies read all tokens and mask
        states(MakeStates(model->config())),
        signature(StepSignature(model->config(), cache, StatesOrNull())) {}

  States* StatesOrNull() { return states ? &*states : nullptr; }

  GraphRunner* Runner(const Variant& variant, bool sparse_tokens, bool sparse_channels) {
    // Native operators read the counts at every step; function bodies compute less where they get none.
    const Choices choices = model->native() ? Choices{true, true} : Choices{sparse_tokens, sparse_channels};
    std::unique_ptr<GraphRunner>& runner = runners[{variant.file, choices}];
    if (!runner) {
      OrtSession* const session = model->sessions().Get(variant.file, signature);
      if (states) states->Reserve();
      if (!buffers) buffers.emplace(model->runtime(), model->config());
      runner = std::make_unique<GraphRunner>(variant.file, session, model->runtime(), cache, StatesOrNull(), *buffers, choices);
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
    const Variant& variant = engine.VariantOf(action.Variant());
    Plan plan{nullptr, nullptr, engine.ChannelsOf(variant)};
    const bool sparse = std::any_of(plan.channels.begin(), plan.channels.end(), [](int64_t count) { return count != 0; });
    plan.step = Runner(variant, action.kv < 100, sparse);
    plan.batch = Runner(variant, false, sparse);
    return plan;
  }

  void EnsureCapacity(int64_t wanted) {
    if (wanted > max_context) {
      throw Error(SOL_ERROR_CONTEXT, "context: got " + std::to_string(wanted) + " tokens, expected at most " +
                                         std::to_string(max_context) + " (" + Megabytes(cache.BytesAt(cache.capacity())) +
                                         " of KV cache in use); shorten the prompt or the answer");
    }
    if (wanted <= cache.capacity()) return;
    const int64_t capacity = cache.CapacityFor(wanted);
    for (auto& [key, runner] : runners) {
      if (runner) runner->Forget();  // null where no session could be made
    }
    try {
      cache.Resize(capacity, static_cast<int64_t>(tokens.size()));
    } catch (const std::bad_alloc&) {
      throw Error(SOL_ERROR_CONTEXT, "context: a KV cache of " + std::to_string(wanted) + " tokens needs " + Megabytes(cache.BytesAt(capacity)) +
                                         ", more than is free; shorten the prompt");
    }
  }

  bool Finite(const Distribution& distribution) const {
    const auto hidden_size = static_cast<int32_t>(buffers->hidden.size());
    return distribution.finite() && MakeDistribution(buffers->hidden.data(), hidden_size).finite();
  }

  // Clears the `appended` tokens of the failed run from the cache.
  [[noreturn]] void Refuse(const Action& action, int64_t appended) {
    const auto length = static_cast<int64_t>(tokens.size());
    cache.Wipe(length, length + appended);
    engine.RefuseNumbers(model->bundle().path(), action);
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
    return EndStep(token, action);
  }

  // The results of the token's run are in the step buffers.
  Distribution EndStep(int32_t token, const Action& action) {
    const auto length = static_cast<int64_t>(tokens.size());
    const Distribution distribution = Seen();
    if (!Finite(distribution)) Refuse(action, 1);
    tokens.push_back(token);
    if (states) states->Commit(length + 1);
    cache.Discard(length + 1);
    if (states && (length + 1) % kCopyEvery == 0) states->Keep();
    return distribution;
  }

  // Runs the tokens of 2 to kMostSessionRows engines, this one's first, of which each cache has room for its own; each engine's step buffers get its results.
  void Together(const std::vector<RoundToken*>& round) {
    const size_t count = round.size(), vocab = buffers->logits.size(), hidden_size = buffers->hidden.size();
    std::vector<SolSessionRow> rows;
    std::vector<std::vector<void*>> caches(count);
    chunk.clear();
    for (size_t i = 0; i < count; ++i) {
      const State& own = Of(*round[i]);
      for (size_t buffer = 0; buffer < own.cache.buffers().size(); ++buffer) caches[i].push_back(own.cache.data(buffer));
      const auto length = static_cast<int64_t>(own.tokens.size());
      rows.push_back({length, round[i]->action.Pages(length, model->config().kv.page_size), own.cache.capacity(), caches[i].data()});
      chunk.push_back(round[i]->token);
    }
    row_logits.resize(count * vocab);
    row_hidden.resize(count * hidden_size);
    GraphRunner* const runner = Prepare(round.front()->action).step;
    buffers->SetLengths(-1, 1);  // a run that did not see the rows would be refused
    buffers->SetPages(0);
    const SolSessionRows shared{rows.data(), count, caches.front().size()};
    {
      const SharedRun scope(shared);
      runner->Batch(chunk, {count, row_logits.data(), row_hidden.data()});
    }
    model->weights().RequireUnchanged();
    for (size_t i = 0; i < count; ++i) {
      State& own = Of(*round[i]);
      std::copy_n(row_logits.data() + i * vocab, vocab, own.buffers->logits.data());
      std::copy_n(row_hidden.data() + i * hidden_size, hidden_size, own.buffers->hidden.data());
    }
  }

  static State& Of(const RoundToken& token) { return *static_cast<OrtEngine*>(token.engine)->state_; }

  // The cache has room for the tokens.
  Distribution Batch(const int32_t* given, size_t count, const Action& action, const Interrupted& check, const Rows& rows = {}) {
    model->weights().RequireUnchanged();
    GraphRunner* const runner = Prepare(action).batch;
    buffers->SetPages(kAllPages);  // kernels read it if the last chunk is one token
    if (states) states->Keep();  // steps may have ended here, where the next prompt branches off
    const size_t first_wanted = count - rows.count;
    Distribution distribution;
    for (size_t start = 0, end = 0; start < count; start = end) {
      if (start > 0) RequireNotInterrupted(check);
      end = ChunkEnd(start, count, rows.count);
      const auto past = static_cast<int64_t>(tokens.size());
      if (rows.count == 1) {
        distribution = Chunk(runner, given + start, end - start, past);
        if (!Finite(distribution)) Refuse(action, static_cast<int64_t>(chunk.size()));
      } else {
        distribution = ChunkOfRows(runner, given + start, end - start, past, action, rows, std::max(start, first_wanted) - first_wanted,
                                   std::max(end, first_wanted) - first_wanted);
      }
      tokens.insert(tokens.end(), given + start, given + end);
      const auto length = static_cast<int64_t>(tokens.size());
      if (states) states->Commit(length);
      cache.Discard(length);
      if (states) states->Keep();
      engine.Report(end, count);
    }
    model->weights().RequireUnchanged();
    return distribution;
  }

  // With states the last token of a prompt is a chunk of its own: the copy before it serves the same prompt again, whose last token always runs anew.
  size_t ChunkEnd(size_t start, size_t count, size_t rows) const {
    const size_t end = std::min(count, start + MostAtOnce());
    return states && rows == 1 && end == count && end - start > 1 ? count - 1 : end;
  }

  size_t MostAtOnce() const { return model->native() ? kChunk : kBodyChunk; }

  Distribution Chunk(GraphRunner* runner, const int32_t* given, size_t count, int64_t past) {
    chunk.assign(given, given + count);
    buffers->SetLengths(past, static_cast<int64_t>(count));
    runner->Batch(chunk);
    return Seen();
  }

  // A chunk whose results are rows `begin` to `end` of those wanted; of one before them a graph computes a row all the same, which nothing reads.
  Distribution ChunkOfRows(GraphRunner* runner, const int32_t* given, size_t count, int64_t past, const Action& action, const Rows& rows, size_t begin,
                           size_t end) {
    const size_t made = std::max<size_t>(end - begin, 1), vocab = buffers->logits.size(), hidden_size = buffers->hidden.size();
    if (rows.logits == nullptr) row_logits.resize(made * vocab);
    if (rows.hidden == nullptr) row_hidden.resize(made * hidden_size);
    float* const logits = rows.logits == nullptr ? row_logits.data() : rows.logits + begin * vocab;
    float* const hidden = rows.hidden == nullptr ? row_hidden.data() : rows.hidden + begin * hidden_size;
    chunk.assign(given, given + count);
    buffers->SetLengths(past, static_cast<int64_t>(count));
    runner->Batch(chunk, {made, logits, hidden});
    if (!AllFinite(logits, made * vocab) || !AllFinite(hidden, made * hidden_size)) Refuse(action, static_cast<int64_t>(count));
    std::copy_n(logits + (made - 1) * vocab, vocab, buffers->logits.begin());
    std::copy_n(hidden + (made - 1) * hidden_size, hidden_size, buffers->hidden.begin());
    return Seen();
  }

  // Makes cache and states those of the tokens, if a rewind or a failed call left others: restores the last copy of the states and runs the tokens after it
  // dense. If the cache no longer holds what the first of them reads, all tokens run, as a prompt does.
  void FollowUp(const Interrupted& check) {
    const auto length = static_cast<int64_t>(tokens.size());
    if (states && states->length() != length) states->Restore(length);
    if (!cache.Holds(states ? states->length() : length)) {
      const std::vector<int32_t> again = std::exchange(tokens, {});
      cache.Forget();
      if (states) states->Restore(0);
      if (!again.empty()) Batch(again.data(), again.size(), model->config().dense, check);
      return;
    }
    while (states && states->length() < length) {
      RequireNotInterrupted(check);
      const Action& dense = model->config().dense;
      GraphRunner* const runner = Prepare(dense).batch;
      buffers->SetPages(kAllPages);
      const auto start = static_cast<size_t>(states->length());
      const size_t end = std::min(tokens.size(), start + MostAtOnce());
      if (!Finite(Chunk(runner, tokens.data() + start, end - start, static_cast<int64_t>(start)))) {
        tokens.resize(start);
        Refuse(dense, static_cast<int64_t>(end - start));
      }
      states->Commit(static_cast<int64_t>(end));
      states->Keep();
    }
  }

  static std::optional<States> MakeStates(const Config& config) {
    if (config.kv.convolves.empty()) return std::nullopt;
    return States(config.model, config.kv);
  }

  const OrtEngine& engine;
  std::shared_ptr<OrtModel> model;
  const int64_t max_context;
  KvCache cache;
  std::optional<States> states;  // of layers that have one
  std::optional<StepBuffers> buffers;  // made when a graph has shown that the config's sizes are true
  Signature signature;
  std::map<std::pair<std::string, Choices>, std::unique_ptr<GraphRunner>> runners;
  std::map<Action, Plan> plans;
  const Plan* last_plan = nullptr;  // the plan whose channels are in the step buffers
  std::vector<int32_t> tokens;
  std::vector<int64_t> chunk;
  std::vector<float> row_logits, row_hidden;  // results of several tokens that nobody asked for
};

OrtEngine::OrtEngine(std::shared_ptr<OrtModel> model, int64_t max_context)
    : Engine(model->config()), state_(std::make_unique<State>(model, max_context, *this)) {}
OrtEngine::~OrtEngine() = default;

const std::vector<int32_t>& OrtEngine::tokens() const { return state_->tokens; }
int64_t OrtEngine::max_context() const { return state_->max_context; }

int64_t OrtEngine::Held(int64_t length) const { return state_->cache.Holds(length) ? length : 0; }

// A rewind of states would run tokens again, and a step that leaves out old tokens reads less than a run.
size_t OrtEngine::StepsAtOnce(const Action& action) const {
  return state_->model->native() && !state_->states && action.kv == 100 ? sol::kFewTokens : 1;
}

void OrtEngine::Keep(int64_t length) {
  state_->tokens.resize(static_cast<size_t>(length));
  if (state_->states) state_->states->Forget(length);
}

StepOutput OrtEngine::Run(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) {
  State& state = *state_;
  state.FollowUp(interrupted);
  state.EnsureCapacity(length() + static_cast<int64_t>(count));
  StepOutput output;
  output.distribution = count == 1 ? state.Step(tokens[0], action) : state.Batch(tokens, count, action, interrupted, rows);
  output.hidden = state.buffers->hidden.data();
  if (rows.count == 1) {  // several were written in place
    if (rows.logits != nullptr) std::copy(state.buffers->logits.begin(), state.buffers->logits.end(), rows.logits);
    if (rows.hidden != nullptr) std::copy(state.buffers->hidden.begin(), state.buffers->hidden.end(), rows.hidden);
  }
  return output;
}

bool OrtEngine::SharesRunsWith(const Engine& other) const {
  const auto* const engine = dynamic_cast<const OrtEngine*>(&other);
  return engine != nullptr && engine->state_->model == state_->model && state_->model->native() && !state_->states;
}

size_t OrtEngine::RunTogether(const std::vector<RoundToken*>& tokens) {
  std::vector<RoundToken*> ready;
  for (RoundToken* const token : tokens) {
    State& state = State::Of(*token);
    try {
      state.FollowUp(nullptr);
      state.EnsureCapacity(token->engine->length() + 1);
      state.Prepare(token->action);
      ready.push_back(token);
    } catch (...) {
      token->error = std::current_exception();
    }
  }
  const size_t runs = (ready.size() + kMostSessionRows - 1) / kMostSessionRows;
  for (size_t run = 0; run < runs; ++run) {
    const auto at = [&](size_t i) { return ready.begin() + static_cast<std::ptrdiff_t>(i * ready.size() / runs); };
    const std::vector<RoundToken*> group(at(run), at(run + 1));
    if (group.size() == 1) {
      Engine::RunTogether(group);
      continue;
    }
    try {
      State::Of(*group.front()).Together(group);
    } catch (...) {
      for (RoundToken* const token : group) token->error = std::current_exception();
      continue;
    }
    for (RoundToken* const token : group) {
      State& state = State::Of(*token);
      try {
        token->output = {state.buffers->hidden.data(), state.EndStep(token->token, token->action)};
      } catch (...) {
        token->error = std::current_exception();
      }
    }
  }
  return runs;
}

void OrtEngine::Forget(const std::string& variant) {
  state_->last_plan = nullptr;
  for (auto plan = state_->plans.begin(); plan != state_->plans.end();) {
    plan = plan->first.Variant() == variant ? state_->plans.erase(plan) : std::next(plan);
  }
}

uint64_t OrtEngine::PrivateBytes() const {
  return state_->cache.BytesAt(state_->cache.capacity()) + (state_->states ? state_->states->Bytes() : 0) +
         (state_->buffers ? state_->buffers->Bytes() : 0) + (state_->row_logits.size() + state_->row_hidden.size()) * sizeof(float);
}

void OrtEngine::Save(std::ostream& stream) const {
  SaveCache(stream, *state_->model, state_->cache, state_->StatesOrNull(), state_->tokens, readers_.empty() ? readers_ : Readers(length()));
}

void OrtEngine::Restore(std::istream& stream) {
  state_->tokens.clear();
  readers_.clear();
  state_->cache.Forget();
  if (state_->states) state_->states->Forget(0);
  SavedTokens saved = RestoreCache(stream, *state_->model, state_->cache, state_->StatesOrNull(),
                                   [this](int64_t tokens) { state_->EnsureCapacity(tokens); });
  state_->tokens = std::move(saved.tokens);
  readers_ = std::move(saved.readers);
}

}  // namespace sol_rt
