#include "engine/ort/run/sessions.h"

#include <algorithm>

#include "base/error.h"

#if defined(__GLIBC__)
#include <malloc.h>
#endif

namespace sol_rt {
namespace {

ONNXTensorElementDataType WeightType(const std::string& dtype) {
  static const std::map<std::string, ONNXTensorElementDataType> types = {
      {"float32", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT}, {"float16", ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16},
      {"int64", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64},   {"int32", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32},
      {"int8", ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8},     {"uint8", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8},
      {"uint4", ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4}};
  return types.at(dtype);
}

// Returns to the system what making a session used and freed: the C library otherwise keeps it resident.
void ReturnFreedMemory() {
#if defined(__GLIBC__)
  malloc_trim(0);
#endif
}

}  // namespace

Sessions::Sessions(std::shared_ptr<const Runtime> runtime, Bundle& bundle, const Weights& weights)
    : runtime_(std::move(runtime)), bundle_(bundle), weights_(weights) {}

OrtSession* Sessions::Get(const std::string& file, const Signature& signature) {
  const std::lock_guard<std::mutex> lock(mutex_);
  auto found = sessions_.find(file);
  if (found == sessions_.end()) {
    Owned<OrtSession> session = Make(file);
    CheckSignature(bundle_.Path(file), runtime_->api(), session.get(), signature);
    found = sessions_.emplace(file, std::move(session)).first;
    ReturnFreedMemory();
  }
  return found->second.get();
}

Owned<OrtSession> Sessions::Make(const std::string& file) {
  const OrtApi* const api = runtime_->api();
  const Owned<OrtSessionOptions> options = runtime_->SessionOptions();
  const std::string path = bundle_.Path(file), graph = bundle_.Read(file);
  const std::vector<ExternalTensor> tensors = weights_.Check(graph, file);
  // The bytes that were hashed become the session; weights that it is not given are read from the folder.
  Check(api, api->AddSessionConfigEntry(options.get(), "session.model_external_initializers_file_folder_path", bundle_.path().c_str()), "session options");
  if (runtime_->native()) {
    for (const ExternalTensor& tensor : tensors) {
      Check(api, api->AddInitializer(options.get(), tensor.name.c_str(), Initializer(tensor.name)), "weights");
    }
    for (const char* dim : kSparseDims) {
      Check(api, api->AddFreeDimensionOverrideByName(options.get(), dim, bundle_.config().model.num_layers), "session options");
    }
  } else {
    weights_.RequireInPlace();
    if (HasWideLayers(file)) {  // quantizing activations to 8 bits would lose more than the weights do
      Check(api, api->AddSessionConfigEntry(options.get(), "session.qdq_matmulnbits_accuracy_level", "1"), "session options");
    }
  }
  OrtSession* session = nullptr;
  OrtStatus* const status = api->CreateSessionFromArray(runtime_->env(), graph.data(), graph.size(), options.get(), &session);
  if (status != nullptr) {
    const std::string got = "a graph that ONNX Runtime refuses (" + OneLine(TakeMessage(api, status)) + ")";
    if (!runtime_->native() && OlderThan(runtime_->version(), kOldestForBodies)) {
      const std::string oldest = "ONNX Runtime 1." + std::to_string(kOldestForBodies);
      BundleFault(path, "", got, oldest + " or newer for function bodies, this is " + runtime_->version(), "upgrade it, or use native operators");
    }
    BundleFault(path, "", got, "a graph of this bundle");
  }
  return Owned<OrtSession>(api, session);
}

const OrtValue* Sessions::Initializer(const std::string& name) {
  auto found = initializers_.find(name);
  if (found == initializers_.end()) {
    const TensorEntry& entry = bundle_.config().tensors.at(name);
    Owned<OrtValue> value = runtime_->Tensor(weights_.data(entry), static_cast<size_t>(entry.bytes), entry.shape, WeightType(entry.dtype));
    found = initializers_.emplace(name, std::move(value)).first;
  }
  return found->second.get();
}

bool Sessions::HasWideLayers(const std::string& file) const {
  for (const auto& [key, variant] : bundle_.config().variants) {
    if (variant.file != file) continue;
    if (variant.layer_bits.empty()) return variant.bits == 8;
    return std::any_of(variant.layer_bits.begin(), variant.layer_bits.end(),
                       [](const auto& row) { return std::find(row.begin(), row.end(), 8) != row.end(); });
  }
  return false;
}

}  // namespace sol_rt
