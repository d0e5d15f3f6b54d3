#include "bundle/config/config_reader.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <set>

#include "base/error.h"
#include "base/text/printable.h"
#include "bundle/config/json_table.h"
#include "bundle/config/policy_scalars.h"

namespace sol_rt {
namespace {

constexpr const char* kFormat = "sol_rt.bundle";
constexpr int64_t kFormatVersion = 1;
constexpr int64_t kPageSize = 4;
constexpr int64_t kAlignment = 4096;
constexpr int64_t kLongestFilter = 32;  // tokens that a short convolution reads at most

const std::vector<std::pair<std::string, int>> kTypeBits = {{"float32", 32}, {"float16", 16}, {"int64", 64}, {"int32", 32},
                                                            {"int8", 8},     {"uint8", 8},    {"uint4", 4}};

template <class T>
std::string ListText(const std::vector<T>& values) {
  std::string text = "[";
  for (size_t i = 0; i < values.size() && text.size() < 1000; ++i) text += (i > 0 ? ", " : "") + std::to_string(values[i]);
  return text + "]";
}

std::string BitsName(int64_t bits) { return bits == kMixedBits ? "mixed" : std::to_string(bits); }

std::string Number(double value) { return Json(value).dump(); }

std::vector<int32_t> Narrow(const std::vector<int64_t>& values) { return std::vector<int32_t>(values.begin(), values.end()); }

bool IsMatrixBits(int64_t bits) { return bits == 4 || bits == 6 || bits == 8; }

bool IsLoss(const Json& value) { return value.is_number() && std::abs(value.get<double>()) < 1e6; }

using Variants = std::map<std::string, Variant>;

Action ReadAction(const JsonTable& table, const std::string& name, const Json& tag, const Config& config) {
  Action action;
  try {
    action = Action::Parse(tag.is_string() ? tag.get_ref<const std::string&>() : std::string());
  } catch (const Error&) {
    table.Fail(name, Short(DumpJson(tag)), "an action tag such as k030-s050-q4");
  }
  if (config.variants.count(action.Variant()) == 0) {
    std::string listed;
    for (const std::string& key : config.variant_order) listed += (listed.empty() ? "a variant of " : ", ") + key;
    table.Fail(name, action.Tag() + ", whose variant " + action.Variant() + " is not in the bundle", listed);
  }
  return action;
}

ModelDims ReadModel(JsonTable table) {
  ModelDims model;
  const auto size = [&](const char* name, int64_t most) { return static_cast<int32_t>(table.Integer(name, 1, most)); };
  model.vocab_size = size("vocab_size", int64_t{1} << 30);
  const int64_t last_id = model.vocab_size - 1;
  if (!table.Value("bos_token_id").is_null()) model.bos_token_id = static_cast<int32_t>(table.Integer("bos_token_id", 0, last_id));
  model.name = table.Text("name");
  model.architecture = table.Text("architecture");
  model.source = table.Text("source");
  model.license = table.Text("license");
  model.hidden_size = size("hidden_size", 1 << 20);
  model.num_layers = size("num_layers", 1024);
  model.num_heads = size("num_heads", 4096);
  model.num_kv_heads = size("num_kv_heads", 4096);
  model.head_dim = size("head_dim", 4096);
  model.intermediate_size = size("intermediate_size", 1 << 24);
  model.max_context = size("max_context", int64_t{1} << 27);
  model.eos_token_ids = Narrow(table.Integers("eos_token_ids", 0, last_id));
  if (model.num_heads % model.num_kv_heads != 0) {
    table.Fail("num_kv_heads", std::to_string(model.num_kv_heads), "a divisor of num_heads = " + std::to_string(model.num_heads));
  }
  table.Done();
  return model;
}

// By layer, whether it has a short convolution; empty without the key, where all layers attend.
std::vector<bool> ReadLayers(JsonTable& table, const ModelDims& model) {
  if (!table.Has("layers")) return {};
  const std::vector<std::string> kinds = table.Texts("layers");
  const auto count = [&](const char* kind) { return static_cast<size_t>(std::count(kinds.begin(), kinds.end(), kind)); };
  const size_t attending = count("attention"), layers = static_cast<size_t>(model.num_layers);
  if (attending + count("conv") != kinds.size() || kinds.size() != layers) {
    table.Fail("layers", Short(DumpJson(table.Value("layers"))), "attention or conv for each of the " + std::to_string(layers) + " layers");
  }
  if (attending == 0 || attending == layers) {
    table.Fail("layers", kinds[0] + " alone", "layers of both kinds; without this key all layers attend");
  }
  if (model.num_heads * model.head_dim != model.hidden_size) {
    const std::string heads = std::to_string(model.num_heads) + " heads of " + std::to_string(model.head_dim);
    table.Fail("layers", heads, std::to_string(model.hidden_size) + " channels");
  }
  std::vector<bool> convolves;
  for (const std::string& kind : kinds) convolves.push_back(kind == "conv");
  return convolves;
}

KvLayout ReadKv(JsonTable table, const ModelDims& model) {
  KvLayout layout;
  layout.convolves = ReadLayers(table, model);
  layout.dtype = table.Choice("dtype", {"float16", "int8"});
  layout.page_size = static_cast<int32_t>(table.Integer("page_size", kPageSize, kPageSize));
  layout.sinks = static_cast<int32_t>(table.Integer("sinks", 0, kPageSize));
  layout.capacity_step = static_cast<int32_t>(table.Integer("capacity_step", kPageSize, 1 << 20));
  layout.dense_layers = Narrow(table.Integers("dense_layers", 0, model.num_layers - 1));
  if (table.Has("windows")) layout.windows = Narrow(table.Integers("windows", 0, model.max_context));
  if (!layout.convolves.empty()) layout.conv_size = static_cast<int32_t>(table.Integer("conv_size", 2, kLongestFilter));
  if (std::adjacent_find(layout.dense_layers.begin(), layout.dense_layers.end(), std::greater_equal<>()) != layout.dense_layers.end()) {
    table.Fail("dense_layers", ListText(layout.dense_layers), "each layer once, in ascending order");
  }
  if (!layout.windows.empty() && layout.windows.size() != static_cast<size_t>(model.num_layers)) {
    table.Fail("windows", ListText(layout.windows), "one for each of the " + std::to_string(model.num_layers) + " layers");
  }
  if (std::any_of(layout.dense_layers.begin(), layout.dense_layers.end(), [&](int32_t layer) { return layout.Convolves(layer); })) {
    table.Fail("dense_layers", ListText(layout.dense_layers), "layers that attend");
  }
  if (layout.capacity_step % layout.page_size != 0) {
    table.Fail("capacity_step", std::to_string(layout.capacity_step), "a multiple of page_size = " + std::to_string(layout.page_size));
  }
  table.Done();
  return layout;
}

int32_t ReadBits(JsonTable& entry) {
  const auto test = [](const Json& value) { return value == "mixed" || (IsIntegerWithin(value, 1, 16) && value.get<int64_t>() != kMixedBits); };
  const Json& raw = entry.Typed("bits", test, "an integer from 1 to 16, or \"mixed\"");
  return raw.is_string() ? kMixedBits : static_cast<int32_t>(raw.get<int64_t>());
}

double ReadDensity(JsonTable& entry, const std::string& name) {
  const auto test = [](const Json& value) {
    if (!value.is_number()) return false;
    const auto share = value.get<double>();
    return share >= 0.01 && share <= 1 && share == std::round(100 * share) / 100;
  };
  return entry.Typed(name, test, "a share from 0.01 to 1 in hundredths").get<double>();
}

std::vector<int32_t> ReadCounts(JsonTable& entry, const std::string& name, int64_t channels, int32_t layers) {
  const std::vector<int64_t> counts = entry.Integers(name, 1, channels);
  if (counts.size() != static_cast<size_t>(layers)) {
    entry.Fail(name, std::to_string(counts.size()) + " counts", std::to_string(layers) + ", one per layer");
  }
  return Narrow(counts);
}

std::vector<std::array<int32_t, 4>> ReadLayerBits(JsonTable& entry, int32_t bits, const ModelDims& model) {
  const bool three = bits == kThreeBits;
  if (bits != kMixedBits && !(three && entry.Has("layer_bits"))) return {};
  const auto test = [three](const Json& value) {
    const auto level = [three](const Json& item) {
      return three ? IsIntegerWithin(item, 3, 4) : IsIntegerWithin(item, 4, 8) && IsMatrixBits(item.get<int64_t>());
    };
    return value.is_array() && std::all_of(value.begin(), value.end(), [&level](const Json& row) {
             return row.is_array() && row.size() == 4 && std::all_of(row.begin(), row.end(), level);
           });
  };
  const std::string levels = three ? "3 or 4" : "4, 6 or 8";
  const Json& raw = entry.Typed("layer_bits", test, "a list of lists of 4 numbers of bits (" + levels + "), for qkv, o, up, down");
  if (raw.size() != static_cast<size_t>(model.num_layers)) {
    entry.Fail("layer_bits", std::to_string(raw.size()) + " layers", std::to_string(model.num_layers));
  }
  std::vector<std::array<int32_t, 4>> rows;
  for (const Json& row : raw) rows.push_back({row[0].get<int32_t>(), row[1].get<int32_t>(), row[2].get<int32_t>(), row[3].get<int32_t>()});
  return rows;
}

std::optional<LmHeadScreen> ReadScreen(JsonTable& entry, const ModelDims& model) {
  if (!entry.Has("lm_head_screen")) return std::nullopt;
  JsonTable table = entry.Table("lm_head_screen");
  LmHeadScreen screen;
  screen.tail_offset = table.Typed("tail_offset", IsLoss, "a finite number").get<double>();
  screen.bits = static_cast<int32_t>(table.Integer("bits", kThreeBits, 4));
  screen.candidates = static_cast<int32_t>(table.Integer("candidates", 1, model.vocab_size - 1));
  table.Done();
  if (screen.bits == kThreeBits && model.vocab_size % 32 != 0) {
    table.Fail("bits", "3", "4: " + std::to_string(model.vocab_size) + " rows are no multiple of 32");
  }
  return screen;
}

std::string ScreenText(const std::optional<LmHeadScreen>& screen) {
  if (!screen) return "no screen";
  const char* first = screen->bits == kThreeBits ? " behind 3 bits" : "";
  return std::to_string(screen->candidates) + " candidates" + first + " with offset " + Number(screen->tail_offset);
}

std::map<int64_t, double> ReadLosses(JsonTable table) {
  std::map<int64_t, double> losses;
  for (auto item = table.raw().begin(); item != table.raw().end(); ++item) {
    const std::string& name = item.key();
    const bool number = !name.empty() && name.size() <= 9 && name[0] != '0' &&
                        std::all_of(name.begin(), name.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!number) table.Fail(Short(name), "this key", "a context in tokens, such as 512");
    losses[std::stoll(name)] = table.Typed(name, IsLoss, "a finite number of nats").get<double>();
  }
  return losses;
}

void ReadVariants(JsonTable table, const ModelDims& model, Config& config) {
  for (auto item = table.raw().begin(); item != table.raw().end(); ++item) {
    const std::string& key = item.key();
    JsonTable entry = table.Table(key);
    Variant variant;
    variant.key = key;
    variant.bits = ReadBits(entry);
    variant.file = entry.FileName("file");
    variant.channel_density = ReadDensity(entry, "channel_density");
    variant.active_up = ReadCounts(entry, "active_up", model.hidden_size, model.num_layers);
    variant.active_down = ReadCounts(entry, "active_down", model.intermediate_size, model.num_layers);
    variant.active_qkv = ReadCounts(entry, "active_qkv", model.hidden_size, model.num_layers);
    variant.active_o = ReadCounts(entry, "active_o", int64_t{model.num_heads} * model.head_dim, model.num_layers);
    variant.weight_bytes = entry.Integer("weight_bytes", 1);
    const bool from_four = variant.bits == kMixedBits || variant.bits == kThreeBits;
    variant.lm_head_bits = static_cast<int32_t>(entry.Integer("lm_head_bits", from_four ? 4 : variant.bits, 16));
    variant.layer_bits = ReadLayerBits(entry, variant.bits, model);
    variant.lm_head_screen = ReadScreen(entry, model);
    if (entry.Has("prompt_losses")) variant.prompt_losses = ReadLosses(entry.Table("prompt_losses"));
    entry.Done();
    if (!IsMatrixBits(variant.lm_head_bits)) entry.Fail("lm_head_bits", std::to_string(variant.lm_head_bits), "4, 6 or 8");
    if (variant.lm_head_screen && variant.lm_head_bits == 4) entry.Fail("lm_head_screen", "lm_head_bits 4", "6 or 8 bits for candidates");
    Action action;
    action.channels = static_cast<int>(std::lround(100 * variant.channel_density));
    action.bits = variant.bits;
    if (key != action.Variant()) {
      table.Fail(key, "channel_density " + Number(variant.channel_density) + " and bits " + BitsName(variant.bits), "the key " + action.Variant());
    }
    for (const std::string& other_key : config.variant_order) {
      const Variant& other = config.variants.at(other_key);
      if (other.file != variant.file) continue;
      if (other.bits != variant.bits || other.lm_head_bits != variant.lm_head_bits) {
        entry.Fail("lm_head_bits", "bits " + BitsName(variant.bits) + " and lm_head_bits " + std::to_string(variant.lm_head_bits),
                   BitsName(other.bits) + " and " + std::to_string(other.lm_head_bits) + ", those of " + other.key + ", which runs this graph");
      }
      if (other.layer_bits != variant.layer_bits) {
        entry.Fail("layer_bits", "other bits", "those of " + other.key + ", which runs the same graph " + other.file);
      }
      if (!(other.lm_head_screen == variant.lm_head_screen)) {
        entry.Fail("lm_head_screen", ScreenText(variant.lm_head_screen),
                   ScreenText(other.lm_head_screen) + ", as " + other.key + ", which runs the same graph " + other.file);
      }
    }
    config.variants.emplace(key, std::move(variant));
    config.variant_order.push_back(key);
  }
  if (config.variants.empty()) BundleFault(table.path(), table.where(), "no variants", "at least the dense one");
}

void ReadActions(JsonTable& top, Config& config) {
  const Json& raw = top.Typed("actions", [](const Json& value) { return value.is_array() && !value.empty(); }, "a non-empty list");
  std::set<Action> known;
  size_t index = 0;
  for (const Json& item : raw) {
    JsonTable table(top.path(), "actions[" + std::to_string(index++) + "]", item);
    ActionEntry entry;
    entry.action = ReadAction(table, "tag", table.Value("tag"), config);
    if (!known.insert(entry.action).second) table.Fail("tag", entry.action.Tag() + " for the second time", "each action once");
    const Json& loss = table.Typed("loss", [](const Json& value) { return value.is_null() || IsLoss(value); }, "a finite number of nats, or null");
    if (!loss.is_null()) entry.loss = loss.get<double>();
    if (table.Has("losses")) entry.losses = ReadLosses(table.Table("losses"));
    table.Done();
    config.actions.push_back(std::move(entry));
  }
}

PolicySpec ReadPolicy(JsonTable table, const Config& config) {
  PolicySpec spec;
  spec.horizon = static_cast<int32_t>(table.Integer("horizon", 1, 4096));
  spec.scalars = table.Texts("scalars");
  for (const std::string& name : spec.scalars) {
    if (std::find(std::begin(kPolicyScalars), std::end(kPolicyScalars), name) != std::end(kPolicyScalars)) continue;
    const std::string near = Nearest(name, std::set<std::string>(std::begin(kPolicyScalars), std::end(kPolicyScalars)));
    std::string known;
    for (const char* scalar : kPolicyScalars) known += (known.empty() ? "" : ", ") + std::string(scalar);
    table.Fail("scalars", Short(name), near.empty() ? known : Quoted(near));
  }
  for (const std::string& tag : table.Texts("actions")) spec.actions.push_back(ReadAction(table, "actions", tag, config));
  const std::set<Action> distinct(spec.actions.begin(), spec.actions.end());
  if (spec.actions.empty() || distinct.size() != spec.actions.size()) {
    table.Fail("actions", std::to_string(spec.actions.size()) + " tags, " + std::to_string(distinct.size()) + " of them distinct",
               "each action once, at least one");
  }
  const std::vector<int64_t> shape = table.Integers("state_shape", 1, 1 << 16);
  bool fits = shape.size() == 5 && shape[1] == 2 && shape[3] == spec.horizon;
  for (size_t i = 0, product = 1; fits && i < 5; ++i) {
    product *= static_cast<size_t>(shape[i]);
    fits = product <= size_t{1} << 28;
  }
  if (!fits) table.Fail("state_shape", ListText(shape), "[layers, 2, heads, " + std::to_string(spec.horizon) + ", size]");
  std::copy(shape.begin(), shape.end(), spec.state_shape.begin());
  for (const char* name : {"gain_over_hull", "gain_budgets"}) {  // of older exports; nobody reads them
    if (table.Has(name)) table.Value(name);
  }
  spec.file = table.FileName("file");
  table.Text("description");  // nobody reads it here
  table.Done();
  return spec;
}

std::map<std::string, FileEntry> ReadFiles(JsonTable table) {
  std::map<std::string, FileEntry> files;
  for (auto item = table.raw().begin(); item != table.raw().end(); ++item) {
    const std::string& name = item.key();
    JsonTable entry = table.Table(name);
    if (!IsFileName(name)) table.Fail(name, "this name", "a plain file name inside the bundle");
    FileEntry file;
    file.sha256 = entry.Text("sha256");
    const bool hex = std::all_of(file.sha256.begin(), file.sha256.end(), [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
    if (file.sha256.size() != 64 || !hex) entry.Fail("sha256", Short(file.sha256), "64 lower-case hex digits");
    file.bytes = entry.Integer("bytes", 0);
    entry.Done();
    files.emplace(name, std::move(file));
  }
  return files;
}

// Bytes of a contiguous tensor. Types of less than a byte are packed, and the last byte is padded. What is beyond 2^62 is not counted exactly.
int64_t TensorBytes(const std::string& dtype, const std::vector<int64_t>& shape) {
  const auto type = std::find_if(kTypeBits.begin(), kTypeBits.end(), [&](const auto& entry) { return entry.first == dtype; });
  constexpr int64_t kMost = int64_t{1} << 62;
  int64_t numbers = 1;
  for (const int64_t size : shape) {
    if (size == 0) return 0;
    numbers = numbers > kMost / 64 / size ? kMost / 64 : numbers * size;
  }
  return (numbers * type->second + 7) / 8;
}

std::map<std::string, TensorEntry> ReadTensors(JsonTable table, int64_t weights_bytes) {
  std::map<std::string, TensorEntry> tensors;
  std::vector<std::string> types;
  for (const auto& entry : kTypeBits) types.push_back(entry.first);
  for (auto item = table.raw().begin(); item != table.raw().end(); ++item) {
    const std::string& name = item.key();
    JsonTable entry = table.Table(name);
    TensorEntry tensor;
    tensor.dtype = entry.Choice("dtype", types);
    tensor.shape = entry.Integers("shape", 0);
    tensor.offset = entry.Integer("offset", 0);
    tensor.bytes = entry.Integer("bytes", 0);
    entry.Done();
    const int64_t wanted = TensorBytes(tensor.dtype, tensor.shape);
    if (tensor.bytes != wanted) {
      entry.Fail("bytes", std::to_string(tensor.bytes), std::to_string(wanted) + " for " + tensor.dtype + " " + ListText(tensor.shape));
    }
    if (tensor.offset % kAlignment != 0) entry.Fail("offset", std::to_string(tensor.offset), "a multiple of " + std::to_string(kAlignment));
    if (tensor.offset + tensor.bytes > weights_bytes) {
      entry.Fail("offset", "an end at " + std::to_string(tensor.offset + tensor.bytes), "at most " + std::to_string(weights_bytes) + ", the file's size");
    }
    tensors.emplace(name, std::move(tensor));
  }
  if (tensors.empty()) BundleFault(table.path(), table.where(), "no tensors", "every tensor of the model");
  return tensors;
}

}  // namespace

Config ReadConfig(std::string_view text, const std::string& path) {
  const Json raw = ParseJson(text, path);
  JsonTable top(path, "", raw);
  const Json& format = top.Value("format");
  if (format != kFormat) {
    top.Fail("format", Short(DumpJson(format)), '"' + std::string(kFormat) + '"', "point at a folder that `sol-rt export` wrote");
  }
  const int64_t version = top.Integer("format_version", 0);
  if (version != kFormatVersion) {
    const char* const hint = "export the bundle again with `sol-rt export -m MODEL`";
    top.Fail("format_version", std::to_string(version), std::to_string(kFormatVersion), hint);
  }
  Config config;
  config.generator = top.Text("generator");
  config.model = ReadModel(top.Table("model"));
  config.kv = ReadKv(top.Table("kv"), config.model);
  ReadVariants(top.Table("variants"), config.model, config);
  config.dense = ReadAction(top, "dense", top.Value("dense"), config);
  if (config.dense.kv != 100) top.Fail("dense", config.dense.Tag(), "an action that reads all KV pages (k100)");
  ReadActions(top, config);
  const bool has_dense =
      std::any_of(config.actions.begin(), config.actions.end(), [&](const ActionEntry& entry) { return entry.action == config.dense; });
  if (!has_dense) top.Fail("actions", "a list without the dense action", config.dense.Tag());
  if (!top.Value("policy").is_null()) config.policy = ReadPolicy(top.Table("policy"), config);
  config.files = ReadFiles(top.Table("files"));
  JsonTable weights = top.Table("weights");
  config.weights_file = weights.FileName("file");
  if (config.files.count(config.weights_file) == 0) weights.Fail("file", config.weights_file, "a file listed under `files`");
  config.tensors = ReadTensors(weights.Table("tensors"), config.files.at(config.weights_file).bytes);
  weights.Done();
  for (const std::string& key : config.variant_order) {
    const std::string& file = config.variants.at(key).file;
    if (config.files.count(file) == 0) top.Fail("variants." + key + ".file", file, "a file listed under `files`");
  }
  if (config.policy && config.files.count(config.policy->file) == 0) top.Fail("policy.file", config.policy->file, "a file listed under `files`");
  top.Done();
  return config;
}

}  // namespace sol_rt
