// Decode steps and batches of one graph: two bindings, a fixed one for steps, and one for batches, whose inputs are bound anew. A step binds nothing and
// allocates nothing.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bundle/config/config.h"
#include "engine/engine.h"
#include "engine/ort/cache/kv_cache.h"
#include "engine/ort/cache/states.h"
#include "engine/ort/runtime.h"

namespace sol_rt {

// The small inputs and the results of a step, allocated once and shared by all graphs of an engine.
class StepBuffers {
 public:
  StepBuffers(const Runtime& runtime, const Config& config);

  void SetLengths(int64_t past, int64_t added) {
    past_length = past;
    total_length = static_cast<int32_t>(past + added);
  }
  // Old KV pages that are read in every layer that may skip some.
  void SetPages(int64_t pages);
  uint64_t Bytes() const;

  int64_t token = 0, past_length = 0, num_logits = 1;
  int32_t total_length = 0;
  std::vector<int64_t> kv_pages;                    // [layers]
  std::vector<int64_t> channels;                    // [4, layers], a row for each of kChannelInputs; 0 stands for all of them
  std::vector<float> logits, hidden;                // [1, vocab], [1, hidden]

  // The same memory as values of ONNX Runtime.
  Owned<OrtValue> token_value, past_value, total_value, pages_value, num_logits_value, no_counts_value, logits_value, hidden_value;
  std::vector<Owned<OrtValue>> channel_values;

 private:
  std::vector<bool> dense_layer_;
};

// Counts that a graph takes as inputs: tokens that attention reads, and active channels.
struct Choices {
  bool tokens, channels;
  bool operator<(const Choices& other) const { return tokens != other.tokens ? tokens < other.tokens : channels < other.channels; }
};

class GraphRunner {
 public:
  // All of these must outlive the runner. `states` is null where no layer has one.
  GraphRunner(std::string file, OrtSession* session, const Runtime& runtime, const KvCache& cache, const States* states, const StepBuffers& buffers,
              Choices choices);

  // Forgets the buffers of the cache, which are about to be replaced.
  void Forget();
  // Runs the token in the step buffers. Throws SOL_ERROR_RUNTIME.
  void Step();
  // Runs tokens with attention to all tokens; the step buffers get the results of the last one, or `rows`, both of whose buffers are there, those of the
  // last ones.
  void Batch(const std::vector<int64_t>& tokens, const Rows& rows = {});

 private:
  Owned<OrtIoBinding> BindCache();
  void BindStates(OrtIoBinding* binding);
  void BindInput(OrtIoBinding* binding, const char* name, const OrtValue* value) const;
  void BindOutput(OrtIoBinding* binding, const char* name, const OrtValue* value) const;
  void Run(OrtIoBinding* binding);

  std::string file_;
  OrtSession* session_;
  const Runtime& runtime_;
  const KvCache& cache_;
  const States* states_;
  const StepBuffers& buffers_;
  Choices choices_;
  std::vector<Owned<OrtValue>> cache_values_;  // of the bindings
  std::vector<std::pair<Owned<OrtValue>, Owned<OrtValue>>> state_values_;  // by layer, what a graph reads and what it writes
  Owned<OrtIoBinding> step_, batch_;
};

}  // namespace sol_rt
