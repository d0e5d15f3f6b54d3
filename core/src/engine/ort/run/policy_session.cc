#include "engine/ort/run/policy_session.h"

#include <algorithm>

#include "engine/ort/ort_model.h"

namespace sol_rt {

PolicySession::PolicySession(OrtModel& model)
    : PolicyRunner(model.config().policy->file, model.config().policy->scalars.size()), api_(model.runtime().api()) {
  const PolicySpec& spec = *model.config().policy;
  session_ = model.sessions().Get(spec.file, PolicySignature(model.config()));
  const std::vector<int64_t> state_shape(spec.state_shape.begin(), spec.state_shape.end());
  size_t state = 1;
  for (const int64_t size : state_shape) state *= static_cast<size_t>(size);
  hidden_.resize(static_cast<size_t>(model.config().model.hidden_size));
  scalars_.resize(spec.scalars.size());
  state_.resize(state);
  logits_.resize(spec.actions.size());
  OrtIoBinding* binding = nullptr;
  Check(api_, api_->CreateIoBinding(session_, &binding), "policy");
  binding_ = Owned<OrtIoBinding>(api_, binding);
  const auto wrap = [&](const void* data, size_t bytes, const std::vector<int64_t>& shape, ONNXTensorElementDataType type) {
    values_.push_back(model.runtime().Tensor(data, bytes, shape, type));
    return values_.back().get();
  };
  constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  constexpr auto kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
  const auto floats = [&](const std::vector<float>& values, const std::vector<int64_t>& shape) {
    return wrap(values.data(), values.size() * sizeof(float), shape, kFloat);
  };
  const auto row = [](const std::vector<float>& values) { return std::vector<int64_t>{1, static_cast<int64_t>(values.size())}; };
  const OrtValue* const state_value = floats(state_, state_shape);
  const std::pair<const char*, const OrtValue*> inputs[] = {{"hidden_states", floats(hidden_, row(hidden_))},
                                                            {"input_ids", wrap(&token_, sizeof(token_), {1, 1}, kInt64)},
                                                            {"scalars", floats(scalars_, row(scalars_))},
                                                            {"previous_action", wrap(&previous_, sizeof(previous_), {1}, kInt64)},
                                                            {"step", wrap(&step_, sizeof(step_), {1}, kInt64)},
                                                            {"past_state", state_value}};
  const std::pair<const char*, const OrtValue*> outputs[] = {{"action_logits", floats(logits_, row(logits_))}, {"present_state", state_value}};
  for (const auto& [name, value] : inputs) Check(api_, api_->BindInput(binding, name, value), "policy");
  for (const auto& [name, value] : outputs) Check(api_, api_->BindOutput(binding, name, value), "policy");
}

void PolicySession::Reset() { std::fill(state_.begin(), state_.end(), 0.0f); }

const std::vector<float>& PolicySession::Run(const PolicyQuestion& question) {
  const std::vector<float>& scalars = *question.scalars;
  std::copy_n(question.hidden, hidden_.size(), hidden_.begin());
  std::copy(scalars.begin(), scalars.end(), scalars_.begin());
  token_ = question.token;
  previous_ = question.previous_action;
  step_ = question.step;
  Check(api_, api_->RunWithBinding(session_, nullptr, binding_.get()), "policy");
  return logits_;
}

}  // namespace sol_rt
