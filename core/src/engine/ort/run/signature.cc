#include "engine/ort/run/signature.h"

#include <algorithm>

#include "base/error.h"

namespace sol_rt {
namespace {

constexpr ONNXTensorElementDataType kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
constexpr ONNXTensorElementDataType kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;

std::string TypeText(ONNXTensorElementDataType type) {
  switch (type) {
    case kFloat:
      return "tensor(float)";
    case kInt64:
      return "tensor(int64)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32:
      return "tensor(int32)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8:
      return "tensor(uint8)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8:
      return "tensor(int8)";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16:
      return "tensor(float16)";
    default:
      return "another type (" + std::to_string(static_cast<int>(type)) + ")";
  }
}

std::string Text(const Port& port) {
  std::string text = TypeText(port.type) + " [";
  for (size_t i = 0; i < port.shape.size() && text.size() < 500; ++i) {
    text += (i > 0 ? ", " : "") + (port.shape[i] == kAnySize ? "None" : std::to_string(port.shape[i]));
  }
  return text + "]";
}

bool Fits(const Port& got, const Port& wanted) {
  if (got.type != wanted.type || got.shape.size() != wanted.shape.size()) return false;
  for (size_t i = 0; i < got.shape.size(); ++i) {
    if (got.shape[i] != kAnySize && wanted.shape[i] != kAnySize && got.shape[i] != wanted.shape[i]) return false;
  }
  return true;
}

Port ReadPort(const OrtApi* api, const OrtSession* session, size_t index, bool output) {
  OrtAllocator* allocator = nullptr;
  Check(api, api->GetAllocatorWithDefaultOptions(&allocator), "a graph");
  char* name = nullptr;
  Check(api, (output ? api->SessionGetOutputName : api->SessionGetInputName)(session, index, allocator, &name), "a graph");
  Port port{name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED, {}};
  TakeMessage(api, api->AllocatorFree(allocator, name));
  OrtTypeInfo* info = nullptr;
  Check(api, (output ? api->SessionGetOutputTypeInfo : api->SessionGetInputTypeInfo)(session, index, &info), "a graph");
  const Owned<OrtTypeInfo> owned(api, info);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  Check(api, api->CastTypeInfoToTensorInfo(info, &tensor), "a graph");
  if (tensor == nullptr) return port;
  size_t rank = 0;
  Check(api, api->GetTensorElementType(tensor, &port.type), "a graph");
  Check(api, api->GetDimensionsCount(tensor, &rank), "a graph");
  port.shape.resize(rank);
  Check(api, api->GetDimensions(tensor, port.shape.data(), rank), "a graph");
  for (int64_t& size : port.shape) size = size < 0 ? kAnySize : size;
  return port;
}

void Compare(const std::string& path, const std::vector<Port>& wanted, const std::vector<Port>& got) {
  const auto find = [](const std::vector<Port>& ports, const std::string& name) {
    const auto found = std::find_if(ports.begin(), ports.end(), [&](const Port& port) { return port.name == name; });
    return found == ports.end() ? nullptr : &*found;
  };
  const auto refuse = [&](const std::string& name, const Port* found, const Port* expected) {
    BundleFault(path, name, found == nullptr ? "nothing" : Text(*found), expected == nullptr ? "nothing" : Text(*expected),
                "the graph belongs to another bundle: export again");
  };
  for (const Port& port : wanted) {
    const Port* const found = find(got, port.name);
    if (found == nullptr || !Fits(*found, port)) refuse(port.name, found, &port);
  }
  for (const Port& port : got) {
    if (find(wanted, port.name) == nullptr) refuse(port.name, &port, nullptr);
  }
}

}  // namespace

ONNXTensorElementDataType OrtType(CacheType type) {
  return type == CacheType::kUInt8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
         : type == CacheType::kInt8 ? ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8
                                    : ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
}

Signature StepSignature(const Config& config, const KvCache& cache, const States* states) {
  Signature made;
  made.inputs = {{"input_ids", kInt64, {1, kAnySize}}, {"past_length", kInt64, {1}}, {"kv_pages", kInt64, {kAnySize}}};
  for (const char* name : kChannelInputs) made.inputs.push_back({name, kInt64, {kAnySize}});
  made.inputs.push_back({"num_logits", kInt64, {1}});
  made.inputs.push_back({"total_length", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32, {1}});
  made.outputs = {{"logits", kFloat, {kAnySize, config.model.vocab_size}}, {"hidden_states", kFloat, {kAnySize, config.model.hidden_size}}};
  for (const CacheBuffer& buffer : cache.buffers()) {
    std::vector<int64_t> shape{1, config.model.num_kv_heads, kAnySize};
    if (buffer.width > 0) shape.push_back(buffer.width);
    made.inputs.push_back({buffer.past, OrtType(buffer.type), shape});
    made.outputs.push_back({buffer.present, OrtType(buffer.type), shape});
  }
  for (size_t i = 0; states != nullptr && i < states->layers().size(); ++i) {
    const std::string layer = std::to_string(states->layers()[i]);
    made.inputs.push_back({"past_conv." + layer, kFloat, states->Shape()});
    made.outputs.push_back({"present_conv." + layer, kFloat, states->Shape()});
  }
  return made;
}

Signature PolicySignature(const Config& config) {
  const PolicySpec& spec = *config.policy;
  const std::vector<int64_t> state(spec.state_shape.begin(), spec.state_shape.end());
  return {{{"hidden_states", kFloat, {1, config.model.hidden_size}},
           {"input_ids", kInt64, {1, 1}},
           {"scalars", kFloat, {1, static_cast<int64_t>(spec.scalars.size())}},
           {"previous_action", kInt64, {1}},
           {"step", kInt64, {1}},
           {"past_state", kFloat, state}},
          {{"action_logits", kFloat, {1, static_cast<int64_t>(spec.actions.size())}}, {"present_state", kFloat, state}}};
}

void CheckSignature(const std::string& path, const OrtApi* api, const OrtSession* session, const Signature& expected) {
  for (const bool output : {false, true}) {
    size_t count = 0;
    Check(api, (output ? api->SessionGetOutputCount : api->SessionGetInputCount)(session, &count), "a graph");
    std::vector<Port> got;
    for (size_t i = 0; i < count; ++i) got.push_back(ReadPort(api, session, i, output));
    Compare(path, output ? expected.outputs : expected.inputs, got);
  }
}

}  // namespace sol_rt
