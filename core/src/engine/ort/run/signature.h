// The inputs and outputs that a graph has to have, derived from the bundle's config, and the check that it has them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "bundle/config/config.h"
#include "engine/ort/api.h"
#include "engine/ort/cache/kv_cache.h"
#include "engine/ort/cache/states.h"

namespace sol_rt {

// Graph inputs that hold the active channels, int64 [layers] each.
constexpr const char* kChannelInputs[] = {"active_up", "active_down", "active_qkv", "active_o"};
// Dims of `kv_pages` and of kChannelInputs: the number of layers, or 0 if the graph is to choose nothing.
constexpr const char* kSparseDims[] = {"sparse_kv_layers", "sparse_channel_layers"};
constexpr int64_t kAnySize = -1;

struct Port {
  std::string name;
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;  // kAnySize for a dim that varies
};

struct Signature {
  std::vector<Port> inputs, outputs;
};

// The signature of docs/reference/bundle-details.md section 1, with this model's sizes and this cache's buffers. `states` is null where no layer has one.
Signature StepSignature(const Config& config, const KvCache& cache, const States* states);
// The signature of docs/reference/bundle-details.md section 5.
Signature PolicySignature(const Config& config);

// Throws SOL_ERROR_BUNDLE at the first difference. `path` is the graph file, for the message.
void CheckSignature(const std::string& path, const OrtApi* api, const OrtSession* session, const Signature& expected);

ONNXTensorElementDataType OrtType(CacheType type);

}  // namespace sol_rt
