// An engine of the host: the host runs the graphs and holds the KV cache, this class knows which tokens are in it.
#pragma once

#include <functional>
#include <string>

#include "engine/engine.h"

namespace sol_rt {

// Graph inputs and facts of one run.
struct HostRun {
  std::vector<int32_t> tokens;
  int64_t past = 0;  // tokens in the cache before them
  Action action;
  std::string graph;               // file of the bundle
  std::vector<int64_t> kv_pages;   // [layers]
  std::vector<int64_t> channels;   // [4, layers]
  size_t rows = 1;
};

// The host's functions. `forward` fills logits [rows, vocab] and hidden [rows, hidden], and throws if it fails; it is empty where the host runs steps between
// two calls. `held` is empty where the host's cache can be cut at every length.
struct HostCalls {
  std::function<void(const HostRun& run, float* logits, float* hidden)> forward;
  std::function<int64_t(int64_t length)> held;
};

class HostEngine final : public Engine {
 public:
  // `path` is the bundle's, for messages.
  HostEngine(const Config& config, std::string path, int64_t max_context, HostCalls calls);

  const std::vector<int32_t>& tokens() const override { return tokens_; }
  int64_t max_context() const override { return max_context_; }
  int64_t Held(int64_t length) const override;
  uint64_t PrivateBytes() const override { return (logits_.size() + hidden_.size()) * sizeof(float); }
  void Save(std::ostream& stream) const override;
  void Restore(std::istream& stream) override;

  bool driven() const { return !calls_.forward; }  // the host runs steps between two calls

  // The two halves of a run of a host that cannot wait in a callback: what to run, and the results of the last token, [vocab] and [hidden], which are
  // copied. Throws as `Forward` does.
  const HostRun& Begin(const int32_t* tokens, size_t count, const Action& action, size_t rows = 1);
  StepOutput EndCopied(const float* logits, const float* hidden);

 protected:
  void Keep(int64_t length) override { tokens_.resize(static_cast<size_t>(length)); }
  StepOutput Run(const int32_t* tokens, size_t count, const Action& action, const Interrupted& interrupted, const Rows& rows) override;
  void Forget(const std::string&) override {}

 private:
  StepOutput End(const float* logits, const float* hidden);  // [rows, vocab] and [rows, hidden]

  const std::string path_;
  const int64_t max_context_;
  const HostCalls calls_;
  std::vector<int32_t> tokens_;
  HostRun run_;
  std::vector<float> logits_, hidden_;  // of a run
};

}  // namespace sol_rt
