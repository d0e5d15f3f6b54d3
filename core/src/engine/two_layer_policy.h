// The policy that exports ship, run without ONNX Runtime: its session takes longer than the arithmetic (docs/reference/bundle-details.md, section 5).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/config/config.h"
#include "bundle/weights.h"
#include "engine/policy_runner.h"

namespace sol_rt {

// action_logits = second gelu(first [scalars, hidden state, embedding of the token] + biases) + biases. Hidden state or embedding may be left out.
// Any number of runners may share it.
class TwoLayerNetwork {
 public:
  // Returns null for a graph that is another network. `weights` must outlive the network.
  static std::shared_ptr<const TwoLayerNetwork> Read(std::string_view graph, const Config& config, const Weights& weights);

  // `columns` [inputs] and `units` are scratch, `logits` [actions] is the result.
  void Run(const float* hidden, int32_t token, const std::vector<float>& scalars, std::vector<float>& columns, std::vector<float>& units,
           std::vector<float>& logits) const;

  size_t inputs() const { return inputs_; }

 private:
  // One row of the embedding, at all its bits.
  void Embed(int32_t token, float* values) const;

  size_t inputs_ = 0, hidden_size_ = 0;
  bool reads_hidden_ = false, reads_embedding_ = false;
  std::vector<float> first_;   // [units / 32, inputs, 32], so that it is read once, in order; units that fill the last block are 0
  std::vector<float> second_;  // [actions, units]
  std::vector<float> first_bias_, second_bias_;
  const uint8_t *base_ = nullptr, *scale_ = nullptr, *zero_ = nullptr, *plane1_ = nullptr, *plane2_ = nullptr;  // of the embedding
  size_t vocabulary_ = 0;
};

class TwoLayerPolicy final : public PolicyRunner {
 public:
  TwoLayerPolicy(std::shared_ptr<const TwoLayerNetwork> network, const PolicySpec& spec);
  void Reset() override {}

 private:
  const std::vector<float>& Run(const PolicyQuestion& question) override;

  std::shared_ptr<const TwoLayerNetwork> network_;
  std::vector<float> columns_, units_, logits_;
};

}  // namespace sol_rt
