#include "bundle/bundle.h"

#include <algorithm>
#include <system_error>

#include "base/error.h"
#include "base/sha256.h"
#include "bundle/config/config_reader.h"

namespace sol_rt {
namespace {

constexpr uint64_t kLongestConfig = 16 << 20;   // bytes
constexpr uint64_t kLongestSmallFile = 1 << 30;  // bytes
constexpr int64_t kMostKept = 64 << 20;          // bytes of contents together; larger files are read again
constexpr int32_t kBlock = 32;                   // input channels that share one scale

std::string Head(const std::string& digest) { return digest.substr(0, 12) + "…"; }

void CheckSize(const std::string& path, const FileEntry& entry) {
  const std::string expected = std::to_string(entry.bytes) + " bytes";
  const FileKind kind = KindOf(path);
  if (kind == FileKind::kNone) BundleFault(path, "", "no such file", expected);
  const char* const other = kind == FileKind::kFolder ? "a folder" : "a pipe, socket or device";
  if (kind != FileKind::kFile) BundleFault(path, "", other, "a file of " + expected);
  int64_t size = 0;
  try {
    size = StateOf(path).size;
  } catch (const std::system_error&) {
    BundleFault(path, "", "no such file", expected);
  }
  if (size != entry.bytes) BundleFault(path, "", std::to_string(size) + " bytes", expected, "copy or export the bundle again");
}

bool IsOfCore(const std::string& name) { return name == kTokenizerFile || name == kChatFile || name == kGenerationConfigFile; }

void CheckHash(const std::string& path, const FileEntry& entry, const std::string& digest) {
  if (digest == entry.sha256) return;
  BundleFault(path, "sha256", Head(digest), Head(entry.sha256),
              "the file was changed or damaged: pull or export the bundle again, or use it as it is with --no-verify");
}

// The state that the weights had while they were hashed.
FileState HashWeights(const std::string& path, const FileEntry& entry, const Progress& progress) {
  const uint64_t total = static_cast<uint64_t>(entry.bytes);
  FileState before, after;
  std::string digest;
  try {
    before = StateOf(path);
    digest = Sha256OfFile(path, [&](uint64_t done) {
      if (progress) progress("hash", done, total);
    });
    after = StateOf(path);
  } catch (const std::system_error& error) {
    BundleFault(path, "", Reason(error), "a readable file");
  }
  if (!(before == after)) BundleFault(path, "", "a file that changes while it is read", "a finished file", "try again");
  CheckHash(path, entry, digest);
  return after;
}

std::string ShapeText(const std::vector<int64_t>& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size() && text.size() < 1000; ++i) text += (i > 0 ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

void CheckShape(const std::string& path, const Config& config, const std::string& name, size_t axis, int64_t expected, const char* key) {
  const auto found = config.tensors.find(name);
  if (found == config.tensors.end()) return;
  const std::vector<int64_t>& shape = found->second.shape;
  if (shape.size() > axis && shape[axis] == expected) return;
  BundleFault(path, "weights.tensors." + name + ".shape", ShapeText(shape) + " in the weights",
              std::to_string(expected) + " at axis " + std::to_string(axis) + ", from " + key);
}

// As Python's Path writes it: no slash at the end, none twice but at the beginning, where a server's name may follow; no `./`.
std::string Normal(const std::string& path) {
  const size_t slashes = std::min(path.find_first_not_of('/'), path.size());
  std::string made(slashes > 2 ? 1 : slashes, '/');
  for (size_t at = 0; at <= path.size();) {
    size_t end = path.find('/', at);
    if (end == std::string::npos) end = path.size();
    const std::string part = path.substr(at, end - at);
    if (!part.empty() && part != ".") made += (made.empty() || made.back() == '/' ? "" : "/") + part;
    at = end + 1;
  }
  return made.empty() ? "." : made;
}

}  // namespace

void CheckShapes(const std::string& path, const Config& config) {
  const ModelDims& model = config.model;
  const int64_t attended = int64_t{model.num_heads} * model.head_dim;
  CheckShape(path, config, "embed.scale", 0, model.hidden_size / kBlock, "model.hidden_size");
  CheckShape(path, config, "embed.scale", 1, model.vocab_size, "model.vocab_size");
  CheckShape(path, config, "rope.cos", 0, model.max_context, "model.max_context");
  for (int32_t i = 0; i < model.num_layers; ++i) {
    const std::string layer = "layers." + std::to_string(i);
    const bool conv = config.kv.Convolves(i);
    if (conv) {
      CheckShape(path, config, layer + ".conv.weight", 0, model.hidden_size, "model.hidden_size");
      CheckShape(path, config, layer + ".conv.weight", 1, config.kv.conv_size, "kv.conv_size");
    }
    const int64_t mixed = conv ? 3 * int64_t{model.hidden_size} : (int64_t{model.num_heads} + 2 * int64_t{model.num_kv_heads}) * model.head_dim;
    for (const std::string scale : {".scale", ".block_scale"}) {
      CheckShape(path, config, layer + ".qkv" + scale, 0, model.hidden_size / kBlock, "model.hidden_size");
      CheckShape(path, config, layer + ".qkv" + scale, 1, mixed, conv ? "kv.layers" : "model.num_heads");
      CheckShape(path, config, layer + ".o" + scale, 0, attended / kBlock, "model.num_heads");
      CheckShape(path, config, layer + ".down" + scale, 0, model.intermediate_size / kBlock, "model.intermediate_size");
    }
  }
  const auto codebook = config.tensors.find("codebook");
  if (codebook != config.tensors.end() && (codebook->second.dtype != "int8" || codebook->second.shape != std::vector<int64_t>{4, 8})) {
    BundleFault(path, "weights.tensors.codebook", codebook->second.dtype + " " + ShapeText(codebook->second.shape), "int8 [4, 8]");
  }
  int32_t widest = 4;
  for (const char* plane : {"embed.plane1", "embed.plane2"}) widest += config.tensors.count(plane) > 0 ? 2 : 0;
  for (const std::string& key : config.variant_order) {
    const Variant& variant = config.variants.at(key);
    int32_t layers = variant.bits;
    if (!variant.layer_bits.empty()) {
      layers = 0;
      for (const auto& row : variant.layer_bits) layers = std::max(layers, *std::max_element(row.begin(), row.end()));
    }
    const std::pair<const char*, int32_t> asked[] = {{variant.layer_bits.empty() ? "bits" : "layer_bits", layers},
                                                     {"lm_head_bits", variant.lm_head_bits}};
    for (const auto& [name, bits] : asked) {
      if (bits <= widest) continue;
      BundleFault(path, "variants." + key + "." + name, std::to_string(bits), "at most " + std::to_string(widest) + ", the widest in the weights");
    }
  }
}

Bundle Bundle::Open(const std::string& folder, sol_verify verify, const Progress& progress, bool whole) {
  constexpr const char* kHint = "point at a folder that `sol-rt export` wrote";
  Bundle bundle;
  bundle.path_ = Normal(folder);
  bundle.verify_ = verify;
  const std::string config_path = bundle.Path(kConfigFile);
  const FileKind kind = KindOf(bundle.path_);
  if (kind == FileKind::kNone) BundleFault(bundle.path_, "", "no such folder", "a bundle", kHint);
  if (kind != FileKind::kFolder) BundleFault(bundle.path_, "", "a file", "a bundle folder", kHint);
  if (KindOf(config_path) != FileKind::kFile) BundleFault(bundle.path_, kConfigFile, "no such file", "a bundle's config", kHint);
  const std::string text = ReadFile(config_path, kLongestConfig, "a bundle's config");
  bundle.config_ = ReadConfig(text, config_path);
  const Config& config = bundle.config_;
  int64_t kept = 0;
  for (const auto& [name, entry] : config.files) {
    const std::string path = bundle.Path(name);
    if (!whole && !IsOfCore(name)) continue;
    CheckSize(path, entry);
    if (verify == SOL_VERIFY_NONE || name == config.weights_file) continue;
    if (entry.bytes > kMostKept - kept) {
      CheckHash(path, entry, Sha256OfFile(path));
      continue;
    }
    std::string content = ReadFile(path, static_cast<uint64_t>(entry.bytes));
    CheckHash(path, entry, Sha256Hex(content));
    kept += entry.bytes;
    bundle.kept_[name] = std::move(content);
  }
  const std::string weights = bundle.Path(config.weights_file);
  if (whole && IsLink(weights)) {
    BundleFault(bundle.path_, config.weights_file, "a symbolic link", "a regular file",
                "replace the link by the file: ONNX Runtime reads weights only from the bundle's own folder");
  }
  CheckShapes(config_path, config);
  if (whole && verify == SOL_VERIFY_ALL) bundle.weights_state_ = HashWeights(weights, config.files.at(config.weights_file), progress);
  bundle.identity_ = Sha256Hex(text);
  return bundle;
}

void Bundle::RequireOutside(const std::string& what, const std::string& path) const {
  const auto check = [&](const std::string& name) {
    try {
      if (!StateOf(path).SameFile(StateOf(Path(name)))) return;
    } catch (const std::system_error&) {
      return;  // no such file
    }
    UsageFault(what + " " + Brief(path) + ": got " + name + " of the bundle " + path_ + ", which a " + what + " would overwrite; choose another file");
  };
  check(kConfigFile);
  for (const auto& file : config_.files) check(file.first);
}

std::string Bundle::Read(const std::string& name) {
  const auto found = config_.files.find(name);
  if (found == config_.files.end()) BundleFault(path_, name, "no such file", "a file of the bundle");
  if (const auto kept = kept_.find(name); kept != kept_.end()) {
    std::string content = std::move(kept->second);
    kept_.erase(kept);
    return content;
  }
  const std::string path = Path(name);
  std::string content = ReadFile(path, kLongestSmallFile);
  if (verify_ != SOL_VERIFY_NONE) {
    const std::string digest = Sha256Hex(content);
    if (digest != found->second.sha256) {
      BundleFault(path, "sha256", Head(digest) + " now", Head(found->second.sha256) + " as when the bundle was opened",
                  "the bundle was replaced: load it again");
    }
  }
  return content;
}

}  // namespace sol_rt
