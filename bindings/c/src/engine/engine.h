// Runs tokens under an action on one KV cache, and returns logits and hidden states. Each session has an engine; engines of one model share its
// ONNX Runtime sessions and its mapped weights.
#pragma once

#include <cstdint>
#include <functional>
#include <iosfwd>
#include <memory>
#include <vector>

#include "bundle/action.h"
#include "engine/distribution.h"

namespace sol_rt {

class Model;  // engine/model.h: config, ONNX Runtime sessions, mapped weights

struct StepOutput {
  const float* hidden = nullptr;  // [hidden]; the next run overwrites it, as it does the logits
  Distribution distribution;
};

class Engine {
 public:
  explicit Engine(std::shared_ptr<Model> model);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  const Model& model() const;
  int64_t length() const;                      // tokens in the cache
  const std::vector<int32_t>& tokens() const;  // those tokens
  int64_t max_context() const;
  int64_t Held(int64_t length) const;          // how many of so many tokens need not run again after a rewind to them: all, or none
  // Throws SOL_ERROR_USAGE beyond the tokens in the cache. If it goes further back than layers with a window hold (cache/kv_cache.h), the next `Forward` runs
  // all tokens once more, as a prompt. If layers have states (cache/states.h), it restores the last copy of them and runs the tokens after that, dense.
  void Truncate(int64_t length);

  // Appends tokens and returns the output of the last one. One token is a decode step under `action`; several run in chunks with attention to all
  // tokens. A call that fails or is interrupted leaves a prefix of the tokens in the cache.
  // `interrupted` is asked before every chunk; if it says true the call throws SOL_ERROR_CANCELLED.
  StepOutput Forward(const int32_t* tokens, size_t count, const Action& action, const std::function<bool()>& interrupted = nullptr);

  uint64_t PrivateBytes() const;

  // Tokens and the used part of every cache buffer, for a session's file. `Restore` throws SOL_ERROR_BUNDLE for another bundle's file or a damaged one,
  // and then leaves the cache empty.
  void Save(std::ostream& stream) const;
  void Restore(std::istream& stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sol_rt
