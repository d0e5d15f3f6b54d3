// Reads from a graph file's protobuf which weights the graph refers to. ONNX Runtime does not report this, and a config that was edited by hand must not
// make a kernel read beyond a tensor's end.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace sol_rt {

// A weight outside the graph file, as the graph describes it.
struct ExternalTensor {
  std::string name, dtype;
  std::vector<int64_t> shape;
  std::string location;      // name of the file that holds it
  int64_t offset = 0;        // bytes
  int64_t length = -1;       // bytes; -1 if the graph does not give it
};

// The operators of a graph in their order, and its float32 initializers.
struct SmallGraph {
  struct Floats {
    std::vector<int64_t> shape;
    std::string_view bytes;  // little-endian, in the graph file
  };
  std::vector<std::string_view> operators;
  std::map<std::string_view, Floats> floats;
};

// Reads a graph without looking at how its nodes are joined. Returns nothing for what is no ONNX model.
std::optional<SmallGraph> ReadSmallGraph(std::string_view model);

// Every initializer whose data is external. Throws SOL_ERROR_BUNDLE, which names `path`, for what is no ONNX model, or one that would end the process.
std::vector<ExternalTensor> ExternalTensors(std::string_view model, const std::string& path);

}  // namespace sol_rt
