#include "engine/ort/run/graph_runner.h"

#include "base/error.h"
#include "engine/ort/run/signature.h"

namespace sol_rt {

StepBuffers::StepBuffers(const Runtime& runtime, const Config& config)
    : kv_pages(static_cast<size_t>(config.model.num_layers), kAllPages),
      channels(4 * static_cast<size_t>(config.model.num_layers)),
      logits(static_cast<size_t>(config.model.vocab_size)),
      hidden(static_cast<size_t>(config.model.hidden_size)),
      dense_layer_(static_cast<size_t>(config.model.num_layers)) {
  constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const int64_t layers = config.model.num_layers;
  const size_t row = static_cast<size_t>(layers) * sizeof(int64_t);
  for (const int32_t layer : config.kv.dense_layers) dense_layer_[static_cast<size_t>(layer)] = true;
  token_value = runtime.Tensor(&token, sizeof(token), {1, 1}, kInt64);
  past_value = runtime.Tensor(&past_length, sizeof(past_length), {1}, kInt64);
  total_value = runtime.Tensor(&total_length, sizeof(total_length), {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
  num_logits_value = runtime.Tensor(&num_logits, sizeof(num_logits), {1}, kInt64);
  no_counts_value = runtime.Tensor(nullptr, 0, {0}, kInt64);
  pages_value = runtime.Tensor(kv_pages.data(), row, {layers}, kInt64);
  for (int64_t i = 0; i < 4; ++i) channel_values.push_back(runtime.Tensor(&channels[static_cast<size_t>(i * layers)], row, {layers}, kInt64));
  logits_value = runtime.Tensor(logits.data(), logits.size() * sizeof(float), {1, config.model.vocab_size}, kFloat);
  hidden_value = runtime.Tensor(hidden.data(), hidden.size() * sizeof(float), {1, config.model.hidden_size}, kFloat);
}

void StepBuffers::SetPages(int64_t pages) {
  for (size_t layer = 0; layer < kv_pages.size(); ++layer) {
    if (!dense_layer_[layer]) kv_pages[layer] = pages;
  }
}

uint64_t StepBuffers::Bytes() const {
  return (kv_pages.size() + channels.size()) * sizeof(int64_t) + (logits.size() + hidden.size()) * sizeof(float);
}

GraphRunner::GraphRunner(std::string file, OrtSession* session, const Runtime& runtime, const KvCache& cache, const States* states,
                         const StepBuffers& buffers, Choices choices)
    : file_(std::move(file)), session_(session), runtime_(runtime), cache_(cache), states_(states), buffers_(buffers), choices_(choices) {}

void GraphRunner::Forget() {
  step_.Reset();
  batch_.Reset();
  cache_values_.clear();
}

void GraphRunner::Step() {
  if (!step_) {
    Owned<OrtIoBinding> binding = BindCache();
    BindInput(binding.get(), "input_ids", buffers_.token_value.get());
    BindInput(binding.get(), "num_logits", buffers_.num_logits_value.get());
    BindOutput(binding.get(), "logits", buffers_.logits_value.get());
    BindOutput(binding.get(), "hidden_states", buffers_.hidden_value.get());
    step_ = std::move(binding);
  }
  Run(step_.get());
}

void GraphRunner::Batch(const std::vector<int64_t>& tokens, const Rows& rows) {
  if (!batch_) batch_ = BindCache();
  const auto shape = [](size_t a, size_t b) { return std::vector<int64_t>{static_cast<int64_t>(a), static_cast<int64_t>(b)}; };
  const Owned<OrtValue> ids =
      runtime_.Tensor(tokens.data(), tokens.size() * sizeof(int64_t), shape(1, tokens.size()), ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  BindInput(batch_.get(), "input_ids", ids.get());
  if (rows.logits == nullptr) {
    BindInput(batch_.get(), "num_logits", buffers_.num_logits_value.get());
    BindOutput(batch_.get(), "logits", buffers_.logits_value.get());
    BindOutput(batch_.get(), "hidden_states", buffers_.hidden_value.get());
    Run(batch_.get());
    return;
  }
  const auto count = static_cast<int64_t>(rows.count);
  const size_t vocab = buffers_.logits.size(), hidden = buffers_.hidden.size();
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const Owned<OrtValue> number = runtime_.Tensor(&count, sizeof(count), {1}, ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
  const Owned<OrtValue> logits = runtime_.Tensor(rows.logits, rows.count * vocab * sizeof(float), shape(rows.count, vocab), kFloat);
  const Owned<OrtValue> states = runtime_.Tensor(rows.hidden, rows.count * hidden * sizeof(float), shape(rows.count, hidden), kFloat);
  BindInput(batch_.get(), "num_logits", number.get());
  BindOutput(batch_.get(), "logits", logits.get());
  BindOutput(batch_.get(), "hidden_states", states.get());
  Run(batch_.get());
}

Owned<OrtIoBinding> GraphRunner::BindCache() {
  const OrtApi* const api = runtime_.api();
  OrtIoBinding* made = nullptr;
  sol_rt::Check(api, api->CreateIoBinding(session_, &made), file_.c_str());
  Owned<OrtIoBinding> binding(api, made);
  if (cache_values_.empty()) {
    for (size_t i = 0; i < cache_.buffers().size(); ++i) {
      cache_values_.push_back(runtime_.Tensor(cache_.data(i), cache_.BufferBytes(i), cache_.Shape(i), OrtType(cache_.buffers()[i].type)));
    }
  }
  for (size_t i = 0; i < cache_values_.size(); ++i) {
    BindInput(made, cache_.buffers()[i].past.c_str(), cache_values_[i].get());
    BindOutput(made, cache_.buffers()[i].present.c_str(), cache_values_[i].get());
  }
  if (states_ != nullptr) BindStates(made);
  BindInput(made, "past_length", buffers_.past_value.get());
  BindInput(made, "total_length", buffers_.total_value.get());
  BindInput(made, "kv_pages", (choices_.tokens ? buffers_.pages_value : buffers_.no_counts_value).get());
  for (size_t i = 0; i < buffers_.channel_values.size(); ++i) {
    BindInput(made, kChannelInputs[i], (choices_.channels ? buffers_.channel_values[i] : buffers_.no_counts_value).get());
  }
  return binding;
}

void GraphRunner::BindStates(OrtIoBinding* binding) {
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  const std::vector<int32_t>& layers = states_->layers();
  for (size_t i = 0; i < layers.size(); ++i) {
    if (state_values_.size() == i) {
      const size_t bytes = states_->LayerBytes();
      state_values_.emplace_back(runtime_.Tensor(states_->Read(i), bytes, states_->Shape(), kFloat),
                                 runtime_.Tensor(states_->Written(i), bytes, states_->Shape(), kFloat));
    }
    const std::string layer = std::to_string(layers[i]);
    BindInput(binding, ("past_conv." + layer).c_str(), state_values_[i].first.get());
    BindOutput(binding, ("present_conv." + layer).c_str(), state_values_[i].second.get());
  }
}

void GraphRunner::BindInput(OrtIoBinding* binding, const char* name, const OrtValue* value) const {
  sol_rt::Check(runtime_.api(), runtime_.api()->BindInput(binding, name, value), file_.c_str());
}

void GraphRunner::BindOutput(OrtIoBinding* binding, const char* name, const OrtValue* value) const {
  sol_rt::Check(runtime_.api(), runtime_.api()->BindOutput(binding, name, value), file_.c_str());
}

void GraphRunner::Run(OrtIoBinding* binding) {
  sol_rt::Check(runtime_.api(), runtime_.api()->RunWithBinding(session_, nullptr, binding), file_.c_str());
}

}  // namespace sol_rt
