// Files in the C interface: what hosts ask that read a bundle's files and traces themselves.
#include <nlohmann/json.hpp>

#include "api/border.h"
#include "bundle/bundle.h"
#include "bundle/config/config_reader.h"
#include "bundle/graph_file.h"
#include "generate/trace/trace.h"
#include "sol_plan.h"

using sol_rt::Guard;
using sol_rt::RequirePointer;

extern "C" {

sol_error* sol_config_check(const char* config, size_t length, const char* path, int32_t shapes) {
  return Guard([&] {
    RequirePointer(config, "sol_config_check: config");
    RequirePointer(path, "sol_config_check: path");
    const sol_rt::Config read = sol_rt::ReadConfig({config, length}, path);
    if (shapes != 0) sol_rt::CheckShapes(path, read);
  });
}

sol_error* sol_graph_weights(const void* graph, size_t size, const char* path, char* json, size_t capacity, size_t* length) {
  return Guard([&] {
    if (size > 0) RequirePointer(graph, "sol_graph_weights: graph");
    RequirePointer(path, "sol_graph_weights: path");
    RequirePointer(length, "sol_graph_weights: length");
    nlohmann::json list = nlohmann::json::array();
    for (const sol_rt::ExternalTensor& tensor : sol_rt::ExternalTensors({static_cast<const char*>(graph), size}, path)) {
      list.push_back({{"name", tensor.name}, {"dtype", tensor.dtype}, {"shape", tensor.shape}, {"location", tensor.location},
                      {"offset", tensor.offset}, {"length", tensor.length}});
    }
    const std::string made = list.dump();
    sol_rt::FillArray(made.data(), made.size(), json, capacity, length);
  });
}

sol_error* sol_trace_check(const char* trace, size_t length, const char* path) {
  return Guard([&] {
    if (length > 0) RequirePointer(trace, "sol_trace_check: trace");
    RequirePointer(path, "sol_trace_check: path");
    sol_rt::ParseTrace({trace, length}, path);
  });
}

}  // extern "C"
