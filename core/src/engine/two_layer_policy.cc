#include "engine/two_layer_policy.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "bundle/graph_file.h"

namespace sol_rt {
namespace {

constexpr size_t kBlock = 32;  // channels that share a scale
constexpr size_t kUnits = 32;  // units of the first layer that are summed in one pass over the inputs

using Four = float __attribute__((vector_size(16), aligned(4)));
constexpr size_t kFours = kUnits / 4;

// sums[u] += Σ inputs[i] weights[i][u]
void AddProducts(const float* inputs, size_t count, const float* weights, float* sums) {
  Four total[kFours];
  std::memcpy(total, sums, sizeof(total));
  for (size_t i = 0; i < count; ++i, weights += kUnits) {
    const float x = inputs[i];
#pragma GCC unroll 8
    for (size_t part = 0; part < kFours; ++part) total[part] += *reinterpret_cast<const Four*>(weights + 4 * part) * x;
  }
  std::memcpy(sums, total, sizeof(total));
}

float FromHalf(uint16_t bits) {
  const float magnitude = std::ldexp(static_cast<float>((bits & 0x3FF) | ((bits & 0x7C00) != 0 ? 0x400 : 0)), std::max(bits >> 10 & 31, 1) - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;  // a bundle's scales are finite
}

std::vector<float> FloatsOf(std::string_view bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), values.size() * sizeof(float));
  return values;
}

}  // namespace

std::shared_ptr<const TwoLayerNetwork> TwoLayerNetwork::Read(std::string_view graph, const Config& config, const Weights& weights) {
  const std::optional<SmallGraph> read = ReadSmallGraph(graph);
  if (!read || !config.policy) return nullptr;
  auto network = std::make_shared<TwoLayerNetwork>();
  std::vector<std::string_view> rest = read->operators;
  rest.erase(std::remove(rest.begin(), rest.end(), "Constant"), rest.end());  // shapes
  network->reads_embedding_ = rest.size() > 2 && rest[0] == "NestedGather" && rest[1] == "Reshape";
  if (network->reads_embedding_) rest.erase(rest.begin(), rest.begin() + 2);
  const bool joins = !rest.empty() && rest[0] == "Concat";
  if (joins) rest.erase(rest.begin());
  if (rest != std::vector<std::string_view>{"Gemm", "Gelu", "Gemm", "Identity"}) return nullptr;

  const auto values = [&](const char* name, std::vector<int64_t> shape, std::vector<float>& target) {
    const auto found = read->floats.find(name);
    if (found == read->floats.end() || found->second.shape != shape) return false;
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    target = FloatsOf(found->second.bytes);
    return target.size() == count;
  };
  const auto bias = read->floats.find("direct.0.bias");
  if (read->floats.size() != 4 || bias == read->floats.end() || bias->second.shape.size() != 1) return nullptr;
  const int64_t units = bias->second.shape[0], actions = static_cast<int64_t>(config.policy->actions.size());
  if (units < 1) return nullptr;
  const int64_t hidden = config.model.hidden_size, scalars = static_cast<int64_t>(config.policy->scalars.size());
  std::vector<float> first;
  const auto reads = [&](int64_t parts) { return values("direct.0.weight", {units, scalars + parts * hidden}, first); };
  const int64_t embedding = network->reads_embedding_ ? 1 : 0;
  network->reads_hidden_ = joins && reads(embedding + 1);
  if (!network->reads_hidden_ && !reads(embedding)) return nullptr;
  if (joins != (network->reads_hidden_ || network->reads_embedding_)) return nullptr;
  if (!values("direct.0.bias", {units}, network->first_bias_) || !values("direct.2.weight", {actions, units}, network->second_) ||
      !values("direct.2.bias", {actions}, network->second_bias_)) {
    return nullptr;
  }
  const size_t wide = (static_cast<size_t>(units) + kUnits - 1) / kUnits * kUnits, inputs = first.size() / static_cast<size_t>(units);
  network->inputs_ = inputs;
  network->hidden_size_ = static_cast<size_t>(hidden);
  network->first_bias_.resize(wide);
  network->first_.resize(wide * inputs);
  for (size_t unit = 0; unit < static_cast<size_t>(units); ++unit) {
    float* const block = network->first_.data() + unit / kUnits * kUnits * inputs + unit % kUnits;
    for (size_t input = 0; input < inputs; ++input) block[input * kUnits] = first[unit * inputs + input];
  }
  if (network->reads_embedding_) {
    const int64_t blocks = hidden / static_cast<int64_t>(kBlock) * config.model.vocab_size;
    const auto data = [&](const char* name, int64_t bytes) {  // of a block and a token
      const auto found = config.tensors.find(name);
      return found == config.tensors.end() || found->second.bytes != blocks * bytes ? nullptr : weights.data(found->second);
    };
    network->base_ = data("embed.base", 16);
    network->scale_ = data("embed.scale", 2);
    network->zero_ = data("embed.zero", 1);
    network->plane1_ = data("embed.plane1", 8);
    network->plane2_ = data("embed.plane2", 8);
    network->vocabulary_ = static_cast<size_t>(config.model.vocab_size);
    const bool planes = (network->plane1_ == nullptr) == (config.tensors.count("embed.plane1") == 0) &&
                        (network->plane2_ == nullptr) == (config.tensors.count("embed.plane2") == 0);
    if (network->base_ == nullptr || network->scale_ == nullptr || network->zero_ == nullptr || !planes) return nullptr;
  }
  return network;
}

void TwoLayerNetwork::Embed(int32_t token, float* values) const {
  const float center = plane2_ != nullptr ? 8.0f : plane1_ != nullptr ? 6.5f : 0.0f;
  const size_t n = static_cast<size_t>(token);
  for (size_t block = 0; block < hidden_size_ / kBlock; ++block) {  // each lies elsewhere: all are asked for at once
    const size_t at = block * vocabulary_ + n;
    __builtin_prefetch(base_ + at * 16);
    __builtin_prefetch(scale_ + at * 2);
    __builtin_prefetch(zero_ + at);
    if (plane1_ != nullptr) __builtin_prefetch(plane1_ + at * 8);
    if (plane2_ != nullptr) __builtin_prefetch(plane2_ + at * 8);
  }
  for (size_t block = 0; block < hidden_size_ / kBlock; ++block) {
    const size_t at = block * vocabulary_ + n;
    uint16_t half;
    std::memcpy(&half, scale_ + at * 2, sizeof(half));
    const float scale = FromHalf(half) / 16.0f, zero = static_cast<float>(zero_[at]) + center;
    for (size_t k = 0; k < kBlock; ++k) {
      int code = (base_[at * 16 + k / 2] >> (k % 2 * 4) & 15) << 4;
      if (plane1_ != nullptr) code |= (plane1_[at * 8 + k / 4] >> (k % 4 * 2) & 3) << 2;
      if (plane2_ != nullptr) code |= plane2_[at * 8 + k / 4] >> (k % 4 * 2) & 3;
      values[block * kBlock + k] = scale * (static_cast<float>(code) - zero);
    }
  }
}

void TwoLayerNetwork::Run(const float* hidden, int32_t token, const std::vector<float>& scalars, std::vector<float>& columns, std::vector<float>& units,
                          std::vector<float>& logits) const {
  float* at = std::copy(scalars.begin(), scalars.end(), columns.data());
  if (reads_hidden_) at = std::copy(hidden, hidden + hidden_size_, at);
  if (reads_embedding_) Embed(token, at);
  units = first_bias_;
  for (size_t unit = 0; unit < units.size(); unit += kUnits) AddProducts(columns.data(), inputs_, first_.data() + unit * inputs_, units.data() + unit);
  for (float& value : units) value = 0.5f * value * (1.0f + std::erf(value * 0.70710678f));
  logits = second_bias_;
  const size_t count = second_.size() / logits.size();
  for (size_t action = 0; action < logits.size(); ++action) {
    for (size_t unit = 0; unit < count; ++unit) logits[action] += second_[action * count + unit] * units[unit];
  }
}

TwoLayerPolicy::TwoLayerPolicy(std::shared_ptr<const TwoLayerNetwork> network, const PolicySpec& spec)
    : PolicyRunner(spec.file, spec.scalars.size()), network_(std::move(network)), columns_(network_->inputs()) {}

const std::vector<float>& TwoLayerPolicy::Run(const PolicyQuestion& question) {
  network_->Run(question.hidden, question.token, *question.scalars, columns_, units_, logits_);
  return logits_;
}

}  // namespace sol_rt
