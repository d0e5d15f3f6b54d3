#include "bundle/graph_file.h"

#include <map>
#include <stdexcept>

#include "base/error.h"
#include "base/text/printable.h"

// Fields that are read, by their numbers in onnx.proto: ModelProto.graph = 7 and functions = 25, GraphProto.node = 1 and initializer = 5,
// FunctionProto.node = 7, of NodeProto output = 2, op_type = 4 and attribute = 5, of AttributeProto name = 1, i = 3, g = 6 and graphs = 11, and of
// TensorProto dims = 1, data_type = 2, name = 8, raw_data = 9, external_data = 13, data_location = 14.

namespace sol_rt {
namespace {

constexpr int kDeepest = 40;  // graphs in graphs; ONNX Runtime reads about 33, because protobuf reads 100 messages in messages
constexpr uint64_t kExternal = 1;

struct Malformed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// The fields of a message, one by one: numbers and length-delimited ones. Those of 4 and 8 bytes are passed over, as none that is read is one.
class Fields {
 public:
  explicit Fields(std::string_view message) : message_(message) {}

  uint32_t number = 0;
  bool is_bytes = false;
  uint64_t value = 0;
  std::string_view bytes;

  bool Next() {
    while (at_ < message_.size()) {
      const uint64_t tag = Varint();
      if (tag >= uint64_t{1} << 32) throw Malformed("a field number of more than 29 bits");  // protobuf would take the lower bits
      number = static_cast<uint32_t>(tag >> 3);
      const unsigned kind = tag & 7;
      if (kind == 0) {
        value = Varint();
        is_bytes = false;
        return true;
      }
      uint64_t size;
      if (kind == 2) {
        size = Varint();
      } else if (kind == 1 || kind == 5) {
        size = kind == 1 ? 8 : 4;
      } else {
        throw Malformed("an unknown wire type");
      }
      if (size > message_.size() - at_) throw Malformed("a field runs past the end");
      bytes = message_.substr(at_, static_cast<size_t>(size));
      at_ += static_cast<size_t>(size);
      if (kind == 2) {
        is_bytes = true;
        return true;
      }
    }
    return false;
  }

  bool AtEnd() const { return at_ >= message_.size(); }
  uint64_t Varint() {
    uint64_t made = 0;
    for (int shift = 0; shift <= 63; shift += 7) {
      if (at_ >= message_.size()) throw Malformed("a number runs past the end");
      const auto byte = static_cast<uint8_t>(message_[at_++]);
      made |= uint64_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return made;
    }
    throw Malformed("a number of more than 64 bits");
  }

 private:
  std::string_view message_;
  size_t at_ = 0;
};

std::vector<std::string_view> Messages(std::string_view message, uint32_t wanted) {
  std::vector<std::string_view> found;
  for (Fields fields(message); fields.Next();) {
    if (fields.number == wanted && fields.is_bytes) found.push_back(fields.bytes);
  }
  return found;
}

// ONNX Runtime 1.32 aborts the process while it infers the shapes of a Split whose `num_outputs` is not that of its outputs.
void CheckSplit(std::string_view node) {
  bool is_split = false;
  uint64_t outputs = 0;
  std::vector<std::string_view> attributes;
  for (Fields fields(node); fields.Next();) {
    is_split = is_split || (fields.number == 4 && fields.is_bytes && fields.bytes == "Split");
    if (fields.number == 2) ++outputs;
    if (fields.number == 5 && fields.is_bytes) attributes.push_back(fields.bytes);
  }
  if (!is_split) return;
  for (const std::string_view attribute : attributes) {
    std::string_view name;
    bool has_value = false;
    uint64_t value = 0;
    for (Fields fields(attribute); fields.Next();) {
      if (fields.number == 1 && fields.is_bytes) name = fields.bytes;  // protobuf passes over a number there
      if (fields.number == 3) {
        has_value = !fields.is_bytes;
        value = fields.value;
      }
    }
    if (name == "num_outputs" && (!has_value || value != outputs)) throw Malformed("a Split with another num_outputs");
  }
}

// Also in the subgraphs of nodes such as If.
void CheckNodes(const std::vector<std::string_view>& nodes, int depth) {
  if (depth > kDeepest) throw Malformed("too many graphs in graphs");
  for (const std::string_view node : nodes) {
    CheckSplit(node);
    for (const std::string_view attribute : Messages(node, 5)) {
      for (const uint32_t field : {6u, 11u}) {
        for (const std::string_view graph : Messages(attribute, field)) CheckNodes(Messages(graph, 1), depth + 1);
      }
    }
  }
}

std::string TypeName(uint64_t type) {
  switch (type) {
    case 1:
      return "float32";
    case 2:
      return "uint8";
    case 3:
      return "int8";
    case 6:
      return "int32";
    case 7:
      return "int64";
    case 10:
      return "float16";
    case 21:
      return "uint4";
    default:
      return "ONNX type " + std::to_string(type);
  }
}

std::string Text(std::string_view bytes) {
  if (!IsUtf8(bytes)) throw Malformed("text that is not UTF-8");
  return std::string(bytes);
}

int64_t Integer(const std::string& text) {
  const size_t start = !text.empty() && text[0] == '-' ? 1 : 0;
  if (text.size() == start || text.size() > start + 18 || text.find_first_not_of("0123456789", start) != std::string::npos) {
    throw Malformed("no whole number");
  }
  return std::stoll(text);
}

void ReadDims(const Fields& fields, std::vector<int64_t>& shape) {
  if (!fields.is_bytes) {
    shape.push_back(static_cast<int64_t>(fields.value));
    return;
  }
  for (Fields packed(fields.bytes); !packed.AtEnd();) shape.push_back(static_cast<int64_t>(packed.Varint()));
}

// False for an initializer whose data is in the graph.
bool ReadTensor(std::string_view message, ExternalTensor& tensor) {
  uint64_t type = 0;
  bool external = false;
  std::map<std::string, std::string> entries;
  for (Fields fields(message); fields.Next();) {
    if (fields.number == 1) {
      ReadDims(fields, tensor.shape);
    } else if (fields.number == 2 && !fields.is_bytes) {
      type = fields.value;
    } else if (fields.number == 8 && fields.is_bytes) {
      tensor.name = Text(fields.bytes);
    } else if (fields.number == 13 && fields.is_bytes) {
      std::string key, value;
      for (Fields pair(fields.bytes); pair.Next();) {
        if (pair.is_bytes && pair.number == 1) key = Text(pair.bytes);
        if (pair.is_bytes && pair.number == 2) value = Text(pair.bytes);
      }
      entries[key] = value;
    } else if (fields.number == 14) {
      external = !fields.is_bytes && fields.value == kExternal;
    }
  }
  if (!external) return false;
  tensor.dtype = TypeName(type);
  tensor.location = entries["location"];
  if (entries.count("offset") > 0) tensor.offset = Integer(entries["offset"]);
  if (entries.count("length") > 0) tensor.length = Integer(entries["length"]);
  return true;
}

}  // namespace

std::optional<SmallGraph> ReadSmallGraph(std::string_view model) {
  SmallGraph read;
  try {
    const std::vector<std::string_view> graphs = Messages(model, 7);
    if (graphs.size() != 1) return std::nullopt;
    for (const std::string_view node : Messages(graphs[0], 1)) {
      const std::vector<std::string_view> types = Messages(node, 4);
      read.operators.push_back(types.empty() ? std::string_view() : types.back());
    }
    for (const std::string_view item : Messages(graphs[0], 5)) {
      uint64_t type = 0;
      std::string_view name;
      SmallGraph::Floats floats;
      for (Fields fields(item); fields.Next();) {
        if (fields.number == 1) ReadDims(fields, floats.shape);
        if (fields.number == 2 && !fields.is_bytes) type = fields.value;
        if (fields.number == 8 && fields.is_bytes) name = fields.bytes;
        if (fields.number == 9 && fields.is_bytes) floats.bytes = fields.bytes;
      }
      if (type == 1) read.floats[name] = floats;
    }
  } catch (const Malformed&) {
    return std::nullopt;
  }
  return read;
}

std::vector<ExternalTensor> ExternalTensors(std::string_view model, const std::string& path) {
  try {
    const std::vector<std::string_view> graphs = Messages(model, 7);
    if (graphs.empty()) throw Malformed("no graph");
    // Where the field occurs several times, protobuf reads the values as one message.
    std::string joined;
    std::string_view graph = graphs[0];
    if (graphs.size() > 1) {
      for (const std::string_view part : graphs) joined += part;
      graph = joined;
    }
    CheckNodes(Messages(graph, 1), 0);
    for (const std::string_view function : Messages(model, 25)) CheckNodes(Messages(function, 7), 0);
    std::vector<ExternalTensor> found;
    for (const std::string_view item : Messages(graph, 5)) {
      ExternalTensor tensor;
      if (ReadTensor(item, tensor)) found.push_back(std::move(tensor));
    }
    return found;
  } catch (const Malformed&) {
    BundleFault(path, "", "bytes that are not an ONNX model", "an ONNX graph");
  }
}

}  // namespace sol_rt
