// Runs tokens under an action on one KV cache, and returns logits and hidden states: the interface that the decode loop knows. `OrtEngine` runs the bundle's
// graphs in ONNX Runtime, `HostEngine` asks the host to run them. Each session has an engine.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <iosfwd>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bundle/action.h"
#include "bundle/config/config.h"
#include "engine/distribution.h"

namespace sol_rt {

constexpr int64_t kAllPages = int64_t{1} << 30;  // of the graph input `kv_pages`: covers every context

struct StepOutput {
  const float* hidden = nullptr;  // [hidden], of the last token; the next run overwrites it, as it does the logits
  Distribution distribution;      // of the token after it
};

// Buffers for the results of the last `count` tokens of a run. A buffer that is null is not filled.
struct Rows {
  size_t count = 1;
  float* logits = nullptr;  // [count, vocab]
  float* hidden = nullptr;  // [count, hidden]
};

// Asked before a run and between its parts; true ends the run with SOL_ERROR_CANCELLED.
using Interrupted = std::function<bool()>;
void RequireNotInterrupted(const Interrupted& interrupted);

// Called after each part of a run of several tokens: tokens of the run that are done, and all of them.
using RunProgress = std::function<void(size_t done, size_t total)>;

// Active channels of every layer, one vector for each of `active_up`, `active_down`, `active_qkv` and `active_o`; an empty one stands for the bundle's own.
struct ActiveChannels {
  std::vector<int32_t> up, down, qkv, o;
};

class Engine;

// The next token of one engine of several, and what comes of it.
struct RoundToken {
  Engine* engine;
  int32_t token;
  Action action;
  StepOutput output{};               // as `Forward` returns it
  std::exception_ptr error = nullptr;  // what `Forward` would throw; null where the token has run
};

class Engine {
 public:
  virtual ~Engine() = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Config& config() const { return config_; }
  virtual const std::vector<int32_t>& tokens() const = 0;  // in the cache
  int64_t length() const { return static_cast<int64_t>(tokens().size()); }
  virtual int64_t max_context() const = 0;
  virtual int64_t Held(int64_t length) const = 0;  // how many of so many tokens need not run again after a rewind to them: all, or none
  // Tokens of one run under the action at most that each get the results and the cache of a step alone; 1 for none but single steps.
  virtual size_t StepsAtOnce(const Action& action) const {
    (void)action;
    return 1;
  }
  // The variants that read the first `count` tokens of the cache, as places in the config's order. Tokens of decode steps count as dense: who takes a step
  // has said what its action may lose.
  std::vector<int32_t> Readers(int64_t count) const;
  size_t DenseTokens() const;  // the first ones of the cache, up to one that another variant read
  // Keeps the first `length` tokens. Throws SOL_ERROR_USAGE beyond the tokens in the cache.
  void Truncate(int64_t length);

  // Appends tokens and returns the output of the last one. One token with one row of results is a decode step under `action`; several run with attention
  // to all tokens. A call that fails or is interrupted leaves a prefix of the tokens in the cache.
  // Throws SOL_ERROR_USAGE for no tokens, tokens outside the vocabulary, rows that are not 1 to `count`, and an action whose variant the bundle lacks;
  // SOL_ERROR_CONTEXT beyond the context, SOL_ERROR_NUMERIC for results that are not finite.
  StepOutput Forward(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted = nullptr, const Rows& rows = {});

  // The same for tokens of a prompt, of which the cache keeps the variant that read them.
  StepOutput Read(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted = nullptr, const Rows& rows = {});

  // Runs one token on each of several engines, on none twice. Each gets the bits and the errors that `Forward` alone gives it.
  // Tokens of one model and variant share runs, which read the weights once for all of them; their KV densities may differ. Others run one after the other:
  // where the bundle's operators are not native, layers have states, or an engine has active channels of its own.
  // Returns the number of runs.
  static size_t ForwardTogether(std::vector<RoundToken>& round);

  // Is called from the next run on; null for none.
  void SetProgress(RunProgress progress) { progress_ = std::move(progress); }

  // Active channels of a variant, for this engine alone. Throws SOL_ERROR_USAGE for a variant that the bundle lacks, and for counts out of range.
  void SetActiveChannels(const std::string& variant, const ActiveChannels& counts);

  virtual uint64_t PrivateBytes() const = 0;
  // Tokens and the used part of every cache buffer, for a session's file. `Restore` throws SOL_ERROR_BUNDLE for another bundle's file or a damaged one,
  // and then leaves the cache empty. Both throw SOL_ERROR_USAGE where the host has the cache.
  virtual void Save(std::ostream& stream) const = 0;
  virtual void Restore(std::istream& stream) = 0;

 protected:
  explicit Engine(const Config& config) : config_(config) {}
  virtual void Keep(int64_t length) = 0;  // `length` is 0 to all
  // The arguments have been checked, but for the context.
  virtual StepOutput Run(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) = 0;
  virtual void Forget(const std::string& variant) = 0;  // that its active channels were changed
  // True if a token of this engine may share a run with one of the other, whose action has the same variant.
  virtual bool SharesRunsWith(const Engine& /*other*/) const { return false; }
  // Runs tokens of engines that share runs, as `ForwardTogether` says. All have been checked, but for the context.
  virtual size_t RunTogether(const std::vector<RoundToken*>& tokens);

  // The variant, with the active channels that were set for it. Throws SOL_ERROR_USAGE if the bundle lacks it.
  const Variant& VariantOf(const std::string& key) const;
  // The graph inputs of its active channels, in the order of kChannelInputs: [4, layers], 0 for all channels, which saves sorting them.
  std::vector<int64_t> ChannelsOf(const Variant& variant) const;
  std::vector<int32_t> readers_;  // of the first tokens; all after them are dense
  void Report(size_t done, size_t total) const {
    if (progress_) progress_(done, total);
  }
  // Throws SOL_ERROR_NUMERIC: `length` tokens are in the cache.
  [[noreturn]] void RefuseNumbers(const std::string& bundle, const Action& action) const;

 private:
  void Check(const int32_t* tokens, size_t count) const;
  bool SharesRun(const RoundToken& mine, const RoundToken& other) const;

  const Config& config_;
  RunProgress progress_;
  std::map<std::string, Variant> changed_;  // variants whose active channels are not the bundle's
};

// True if no value is infinite or NaN.
bool AllFinite(const float* values, size_t count);

}  // namespace sol_rt
