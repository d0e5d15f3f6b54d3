// Contents of `sol_config.json` (docs/reference/bundle-details.md, section 4).
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "bundle/action.h"

namespace sol_rt {

struct ModelDims {
  std::string name, architecture, source, license;
  int32_t vocab_size, hidden_size, num_layers, num_heads, num_kv_heads, head_dim, intermediate_size, max_context;
  std::optional<int32_t> bos_token_id;
  std::vector<int32_t> eos_token_ids;
};

struct KvLayout {
  std::string dtype;  // `float16` or `int8`
  int32_t page_size, sinks, capacity_step;
  std::vector<int32_t> dense_layers;
  std::vector<int32_t> windows;  // tokens that each layer attends to, 0 for all; empty where all layers do
  std::vector<bool> convolves;   // by layer, whether it has a short convolution instead of attention; empty where all layers attend
  int32_t conv_size = 0;         // tokens that a short convolution reads, the new one included

  bool Convolves(int32_t layer) const { return !convolves.empty() && convolves[static_cast<size_t>(layer)]; }
  int64_t Convolving() const { return std::count(convolves.begin(), convolves.end(), true); }
  int64_t Attending(const ModelDims& model) const { return model.num_layers - Convolving(); }
  // Bytes of the states of all layers: float32 [1, hidden, conv_size - 1] each.
  int64_t StateBytes(const ModelDims& model) const { return 4 * Convolving() * model.hidden_size * std::max(conv_size - 1, 0); }

  // Bytes of one token's key and value in one KV head.
  int64_t TokenBytes(int64_t head_dim) const { return dtype == "int8" ? 2 * (head_dim + 2) : 4 * head_dim; }
};

// Screen of an LM head: rows that are read at all bits, the number added to the logits of the others, and the bits of the first pass.
struct LmHeadScreen {
  int32_t candidates;
  double tail_offset;
  int32_t bits;

  bool operator==(const LmHeadScreen& other) const {
    return candidates == other.candidates && tail_offset == other.tail_offset && bits == other.bits;
  }
};

struct Variant {
  std::string key, file;
  double channel_density;
  int32_t bits;
  std::vector<int32_t> active_up, active_down, active_qkv, active_o;  // one a layer
  int64_t weight_bytes;
  int32_t lm_head_bits;
  std::vector<std::array<int32_t, 4>> layer_bits;  // of qkv, o, up, down; empty where all are alike
  std::optional<LmHeadScreen> lm_head_screen;      // none: every row is read at lm_head_bits
  std::map<int64_t, double> prompt_losses;         // nats a token that dense steps lose behind a prompt run by it, by the prompt's length; empty if not measured
};

struct ActionEntry {
  Action action;
  std::optional<double> loss;        // nats over dense at the longest context measured
  std::map<int64_t, double> losses;  // by context; empty if not measured
};

struct PolicySpec {
  std::string file;
  int32_t horizon;
  std::vector<std::string> scalars;
  std::vector<Action> actions;
  std::array<int64_t, 5> state_shape;
};

struct TensorEntry {
  std::string dtype;
  std::vector<int64_t> shape;
  int64_t offset, bytes;
};

struct FileEntry {
  int64_t bytes;
  std::string sha256;
};

struct Config {
  std::string generator;
  ModelDims model;
  KvLayout kv;
  Action dense;
  std::map<std::string, Variant> variants;
  std::vector<std::string> variant_order;  // keys as the file has them
  std::vector<ActionEntry> actions;
  std::optional<PolicySpec> policy;
  std::string weights_file;
  std::map<std::string, TensorEntry> tensors;
  std::map<std::string, FileEntry> files;

  bool LossesMeasured() const {
    for (const ActionEntry& entry : actions) {
      if (entry.loss) return true;
    }
    return false;
  }
};

}  // namespace sol_rt
