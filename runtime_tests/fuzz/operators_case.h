// A call of an operator, made of a byte string: which operator, its sizes, what its tensors hold, and then up to three damages. Bytes beyond
// the end of the string count as 0. A string whose damages are none gives a call that must run.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "common/attention_limits.h"
#include "common/nested_format.h"
#include "fuzz/operators_stand_in.h"

namespace fuzz {

class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : begin_(data), at_(data), end_(data + size) {}

  size_t Used() const { return static_cast<size_t>(at_ - begin_); }

  uint8_t Byte() { return at_ < end_ ? *at_++ : 0; }
  int64_t Below(int64_t count) { return (count > 256 ? Byte() * 256 + Byte() : Byte()) % count; }
  bool Flag() { return Byte() % 2 != 0; }
  uint64_t Word() {
    uint64_t word = 0;
    for (int i = 0; i < 8; ++i) word = word << 8 | Byte();
    return word;
  }
  template <class T, size_t kCount>
  T OneOf(const T (&values)[kCount]) {
    return values[Below(kCount)];
  }
  int64_t Near(int64_t old) { return static_cast<int64_t>(static_cast<uint64_t>(old) + static_cast<uint64_t>(Below(3)) - 1); }
  // A number that is likely to break something, or one near `old`, or any.
  int64_t Number(int64_t old) {
    constexpr int64_t kMost = std::numeric_limits<int64_t>::max(), kLeast = std::numeric_limits<int64_t>::min();
    constexpr int64_t kNumbers[] = {0,    1,         -1,        2,         3,          4,        31,       32,   33,        63,
                                    64,   65,        100,       127,       128,        255,      256,      257,  512,       1023,
                                    1024, 65535,     65536,     1 << 20,   1 << 24,    1 << 30,  INT32_MAX, INT32_MIN, int64_t{1} << 31, int64_t{1} << 32,
                                    int64_t{1} << 40, int64_t{1} << 62, kMost, kMost - 3, kLeast, kLeast + 1};
    switch (Below(4)) {
      case 0: return Near(old);
      case 1: return static_cast<int64_t>(Word());
      default: return OneOf(kNumbers);
    }
  }

 private:
  const uint8_t *begin_, *at_, *end_;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t Next() {  // splitmix64
    uint64_t z = state_ += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
  }
  size_t Below(size_t count) { return static_cast<size_t>(Next() % count); }

 private:
  uint64_t state_;
};

enum class Content { kPlain, kZeros, kEqual, kNaN, kInfinite, kHuge, kTiny, kAnyBits };

class Case {
 public:
  OrtKernelInfo node;
  size_t threads = 1;
  bool damaged = false, too_large = false;  // too_large: a tensor would take more memory than the stand-in has
  int allocations = -1;                     // of the operators' scratch memory, after which there is no more; -1: all are granted

  // Without `damage` those that the string asks for are left out.
  Case(const uint8_t* data, size_t size, bool damage = true) : bytes_(data, size), random_(0) {
    const int64_t kind = bytes_.Below(8);
    const uint64_t seed = bytes_.Word();
    random_ = Random(seed);
    three_ = seed % 4 == 3;
    content_ = static_cast<Content>(bytes_.Below(8));
    threads = bytes_.Below(16) == 15 ? 3 : 1;
    const int64_t short_of_memory = bytes_.Below(64);
    if (damage && short_of_memory < 4) {
      allocations = static_cast<int>(short_of_memory);
      damaged = true;
    }
    declare_ = bytes_.Flag();
    switch (kind) {
      case 0: Gather(); break;
      case 1: MatMul(); break;
      case 2: PrunedMatMul(); break;
      case 3: Mlp(); break;
      case 4: case 5: Attention(kind == 5); break;
      default: Layer(kind == 7); break;
    }
    if (damage) Damage();
  }

  // Number of bytes of the string that the case is made of.
  size_t Used() const { return bytes_.Used(); }

 private:
  static constexpr int64_t kTokens[] = {1, 1, 1, 2, 3, 5, 17, 130};
  static constexpr int kBits[] = {4, 6, 8};

  // The node's attributes, inputs and outputs.
  void Attribute(const char* name, int64_t value) { node.attributes.push_back({name, value}); }
  void Attribute(const char* name, float value) { node.attributes.push_back({name, value}); }
  void Attribute(const char* name, const char* value) { node.attributes.push_back({name, std::string(value)}); }
  OrtValue& Input(const char* name, sol::Type type, std::vector<int64_t> dims, bool constant = false) {
    values_.push_back(std::make_unique<OrtValue>(type, std::move(dims)));
    OrtValue& value = *values_.back();
    Fill(value);
    OrtKernelInfo::Input input{name, value.info, &value, constant};
    if (!constant && !declare_) std::fill(input.declared.dims.begin(), input.declared.dims.end(), -1);
    node.inputs.push_back(std::move(input));
    return value;
  }
  void Counts(const char* name, std::vector<int64_t> counts) {
    OrtValue& value = Input(name, sol::kInt64, {static_cast<int64_t>(counts.size())});
    std::memcpy(value.data.get(), counts.data(), value.Bytes());
  }
  void Output(const char* name, OrtValue* bound = nullptr) { node.outputs.push_back({name, bound}); }

  void Fill(OrtValue& value) {
    const size_t bytes = value.Bytes();
    const auto fill = [&](auto number) {
      using T = decltype(number);
      T* to = reinterpret_cast<T*>(value.data.get());
      const T one = Number<T>();
      for (size_t i = 0; i < bytes / sizeof(T); ++i) to[i] = content_ == Content::kEqual ? one : Number<T>();
    };
    if (value.info.type == sol::kFloat) {
      fill(float{});
    } else if (value.info.type == sol::kFloat16) {
      fill(uint16_t{});
    } else if (value.info.type == sol::kInt64) {
      if (bytes > 0) std::memset(value.data.get(), 0, bytes);
    } else {
      fill(uint8_t{});
    }
  }
  // A float, the bits of a float16, or a byte.
  template <class T>
  T Number() {
    const bool special = random_.Below(8) == 0;
    const uint64_t word = random_.Next();
    if constexpr (sizeof(T) == 1) {
      return static_cast<T>(content_ == Content::kZeros ? 0 : word);
    } else {
      constexpr bool kHalf = sizeof(T) == 2;
      const auto plain = static_cast<float>(static_cast<int64_t>(word % 4001) - 2000) / 500.0f;
      const uint32_t sign = kHalf ? word >> 20 & 0x8000 : word & 0x80000000u;
      uint32_t bits = 0;
      switch (content_) {
        case Content::kZeros: bits = sign; break;
        case Content::kNaN: bits = special ? (kHalf ? 0x7E00 : 0x7FC00000u) : 0; break;
        case Content::kInfinite: bits = special ? (kHalf ? 0x7C00 : 0x7F800000u) | sign : 0; break;
        case Content::kHuge: bits = special ? (kHalf ? 0x7BFF : 0x7F7FFFFFu) | sign : 0; break;
        case Content::kTiny: bits = special ? 1 | sign : 0; break;
        case Content::kAnyBits: bits = special ? static_cast<uint32_t>(word) : 0; break;
        default: break;
      }
      if (bits == 0 && content_ != Content::kZeros) {
        if constexpr (kHalf) return static_cast<T>((word & 0x83FF) | (12 + word / 65536 % 4) << 10);  // 2^-3 to 2
        else return plain;
      }
      T number;
      std::memcpy(&number, &bits, sizeof(number));
      return number;
    }
  }

  // The bits of a layer's matrix of N outputs. Of 4 some seeds make 3.
  int LayerBits(int64_t N) {
    const int bits = bytes_.OneOf(kBits);
    return bits == 4 && three_ && N % static_cast<int64_t>(sol::kCodeTile) == 0 ? 3 : bits;
  }

  // Inputs of a nested matrix, and beside it.
  void Matrix(int64_t K, int64_t N, int bits, bool channel_major) {
    if (bits == 3) return Codebook(K, N);
    Base(K, N, channel_major);
    if (bits > 4) Input("plane1", sol::kUInt8, {K / 32, N, 8}, true);
    if (bits > 6) Input("plane2", sol::kUInt8, {K / 32, N, 8}, true);
  }
  void Base(int64_t K, int64_t N, bool channel_major) {
    const int64_t blocks = K / 32;
    if (channel_major) {
      Input("base", sol::kUInt4, {K, N}, true);
    } else {
      Input("base", sol::kUInt8, {blocks, N, 16}, true);
    }
    Input("scale", sol::kFloat16, {blocks, N}, true);
    Input("zero", sol::kUInt8, {blocks, N}, true);
  }
  void Codebook(int64_t K, int64_t N) {
    Input("low", sol::kUInt8, {K, N / 4}, true);
    Input("high", sol::kUInt8, {K, N / 8}, true);
    Input("block_scale", sol::kUInt8, {K / 32, N}, true);
    Input("output_scale", sol::kFloat16, {N}, true);
    OrtValue& codebook = Input("codebook", sol::kInt8, {4, 8}, true);
    for (size_t i = 0; i < codebook.Bytes(); ++i) {
      auto& entry = reinterpret_cast<uint8_t*>(codebook.data.get())[i];
      if (entry == 0x80) entry = 0x7F;
    }
  }
  void Vector(const char* name, int64_t n) { Input(name, sol::kFloat, {n}, true); }
  std::vector<int64_t> Rows(int64_t K) {
    const int64_t tokens = bytes_.OneOf({int64_t{1}, int64_t{1}, int64_t{0}, int64_t{2}, int64_t{3}, int64_t{5}, int64_t{17}, int64_t{130}});
    return bytes_.Flag() ? std::vector<int64_t>{1, tokens, K} : std::vector<int64_t>{tokens, K};
  }
  int64_t Channels(int64_t most_blocks) { return 32 * (1 + bytes_.Below(most_blocks)); }
  int64_t UpTo(int64_t most) { return bytes_.Below(most + 1); }

  void Gather() {
    const int bits = bytes_.OneOf(kBits);
    const int64_t K = Channels(5), N = 1 + bytes_.Below(300), tokens = bytes_.Below(40);
    node.op = "NestedGather";
    Attribute("bits", int64_t{bits});
    Attribute("K", K);
    Attribute("N", N);
    OrtValue& ids = Input("ids", sol::kInt64, {1, tokens});
    for (int64_t i = 0; i < tokens; ++i) {
      const int64_t id = static_cast<int64_t>(random_.Below(static_cast<size_t>(N)));
      std::memcpy(ids.data.get() + i * 8, &id, 8);
    }
    Matrix(K, N, bits, false);
    Output("y");
  }
  void MatMul() {
    const int bits = bytes_.OneOf(kBits);
    const int64_t K = Channels(9), any = 1 + bytes_.Below(300), screen = bits > 4 ? bytes_.Below(3) : 0;
    const bool three = screen == 2;  // bits of the first pass
    const int64_t N = three ? 32 * (1 + any / 16) : any;
    node.op = "NestedMatMul";
    Attribute("bits", int64_t{bits});
    Attribute("K", K);
    Attribute("N", N);
    Input("x", sol::kFloat, Rows(K));
    Matrix(K, N, bits, false);
    if (three) Codebook(K, sol::ScreenColumns(N));
    Output("y");
    if (screen > 0) {
      Attribute("candidates", 1 + bytes_.Below(300));
      Attribute("tail_offset", 0.5f);
    }
    if (three) Attribute("screen_bits", int64_t{3});
  }
  void PrunedMatMul() {
    const int bits = LayerBits(0);
    const int64_t K = Channels(9), twos = 1 + bytes_.Below(200), N = bits == 3 ? 32 * (1 + twos / 16) : 2 * twos;
    node.op = "PrunedMatMul";
    Attribute("bits", int64_t{bits});
    Attribute("K", K);
    Attribute("N", N);
    Input("x", sol::kFloat, Rows(K));
    Counts("active", {UpTo(K)});
    Matrix(K, N, bits, true);
    Output("y");
  }
  const char* Activation() {
    constexpr const char* kNames[] = {"silu", "gelu", "gelu_tanh", "relu"};
    return bytes_.OneOf(kNames);
  }
  void Mlp() {
    const int up_bits = LayerBits(0), down_bits = LayerBits(0);
    const int64_t K = Channels(5), I = Channels(9);
    const bool gated = bytes_.Flag(), bias = bytes_.Flag();
    node.op = "PrunedMLP";
    Attribute("bits", int64_t{up_bits});
    Attribute("down_bits", int64_t{down_bits});
    Attribute("K", K);
    Attribute("I", I);
    Attribute("gated", int64_t{gated});
    Attribute("has_bias", int64_t{bias});
    Attribute("activation", Activation());
    const int64_t U = gated ? 2 * I : I;
    Input("x", sol::kFloat, Rows(K));
    Counts("active_up", {UpTo(K)});
    Counts("active_down", {UpTo(I)});
    Matrix(K, U, std::min(up_bits, 4), true);
    Matrix(I, K, std::min(down_bits, 4), true);
    for (const int above : {4, 6}) {
      if (up_bits > above) Input("up_plane", sol::kUInt8, {K / 32, U, 8}, true);
      if (down_bits > above) Input("down_plane", sol::kUInt8, {I / 32, K, 8}, true);
    }
    if (bias) {
      Vector("up_bias", U);
      Vector("down_bias", K);
    }
    Output("y");
  }

  struct Heads {
    int64_t kv_heads, group, head_dim, rotary_dim, capacity, tokens, past, kv_pages;
    int64_t Count() const { return kv_heads * group; }
    int64_t QkvSize() const { return (Count() + 2 * kv_heads) * head_dim; }
  };
  Heads ReadHeads(bool whole_blocks) {
    Heads h{};
    h.kv_heads = 1 + bytes_.Below(3);
    h.group = bytes_.OneOf({int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, int64_t{5}, int64_t{7}, int64_t{12}});
    h.head_dim = 2 * (1 + bytes_.Below(whole_blocks ? 24 : 40));
    if (whole_blocks) {
      while (h.Count() * h.head_dim % 32 != 0) h.head_dim += 2;
    }
    h.rotary_dim = 2 * UpTo(h.head_dim / 2);
    // Sometimes more old tokens than one task scores.
    h.capacity = sol::kPageSize * (1 + (bytes_.Below(16) == 0 ? 280 : bytes_.Below(40)));
    h.tokens = std::min(bytes_.OneOf(kTokens), h.capacity);
    const int64_t room = h.capacity - h.tokens;
    h.past = bytes_.Flag() ? room : UpTo(room);
    h.kv_pages = bytes_.Flag() ? UpTo(8) : UpTo(h.capacity / sol::kPageSize);
    Attribute("num_heads", h.Count());
    Attribute("kv_heads", h.kv_heads);
    Attribute("head_dim", h.head_dim);
    Attribute("rotary_dim", h.rotary_dim);
    Attribute("page_size", sol::kPageSize);
    Attribute("sinks", bytes_.OneOf({int64_t{0}, int64_t{4}, int64_t{21}, sol::kMaxCapacity}));
    Attribute("softmax_scale", 1.0f / std::sqrt(static_cast<float>(h.head_dim)));
    return h;
  }
  // Inputs and outputs of the cache, but for an int8 cache's scales. `kv_pages`: with those of other layers.
  void Cache(const Heads& h, bool int8, const std::vector<int64_t>& kv_pages) {
    const sol::Type element = int8 ? sol::kInt8 : sol::kFloat16;
    in_place_ = bytes_.Flag();
    const auto add = [&](const char* past, const char* present, sol::Type type, int64_t width) {
      OrtValue& value = Input(past, type, {1, h.kv_heads, h.capacity, width});
      Output(present, in_place_ ? &value : nullptr);
    };
    add("past_key", "present_key", element, h.head_dim);
    add("past_value", "present_value", element, h.head_dim);
    add("past_key_codes", "present_key_codes", sol::kUInt8, h.head_dim / 2);
    add("past_key_range", "present_key_range", sol::kFloat16, 2);
    Counts("past_length", {h.past});
    Counts("kv_pages", kv_pages);
  }
  void Rotary(const Heads& h, bool constant) {
    for (const char* name : {"cos", "sin"}) Input(name, sol::kFloat, {h.capacity, h.rotary_dim / 2}, constant);
  }
  void Scales(const Heads& h) {
    for (const char* part : {"key_scale", "value_scale"}) {
      OrtValue& value = Input(part, sol::kFloat16, {1, h.kv_heads, h.capacity});
      Output(part, in_place_ ? &value : nullptr);
    }
  }
  void Attention(bool int8) {
    node.op = "SparseAttention";
    const Heads h = ReadHeads(false);
    Input("qkv", sol::kFloat, {1, h.tokens, h.QkvSize()});
    Output("y");
    Cache(h, int8, {h.kv_pages});
    Rotary(h, false);
    if (int8) Scales(h);
  }
  std::vector<int64_t> OfLayers(int64_t own) {
    std::vector<int64_t> counts(static_cast<size_t>(layers_), -7);
    counts[static_cast<size_t>(layer_)] = own;
    return counts;
  }
  void Layer(bool int8) {
    node.op = "DecoderLayer";
    const Heads h = ReadHeads(true);
    const int64_t hidden = Channels(4), I = Channels(5);
    const bool layer_norm = bytes_.Flag(), gated = bytes_.Flag(), wants_shared_norm = bytes_.Flag();
    const bool qkv_bias = bytes_.Flag(), output_bias = bytes_.Flag(), mlp_bias = bytes_.Flag();
    const int qkv_bits = LayerBits(h.QkvSize()), o_bits = LayerBits(0), up_bits = LayerBits(0), down_bits = LayerBits(0);
    layers_ = 1 + bytes_.Below(3);
    layer_ = bytes_.Below(layers_);
    Attribute("layer", layer_);
    Attribute("hidden_size", hidden);
    Attribute("intermediate_size", I);
    const bool parallel = bytes_.Flag(), shared_norm = parallel && wants_shared_norm;
    Attribute("parallel_residual", int64_t{parallel});
    Attribute("norm", layer_norm ? "layer" : "rms");
    Attribute("epsilon", 1e-5f);
    Attribute("shared_norm", int64_t{shared_norm});
    Attribute("bits", int64_t{qkv_bits});
    Attribute("o_bits", int64_t{o_bits});
    Attribute("up_bits", int64_t{up_bits});
    Attribute("down_bits", int64_t{down_bits});
    Attribute("qkv_bias", int64_t{qkv_bias});
    Attribute("output_bias", int64_t{output_bias});
    Attribute("mlp_bias", int64_t{mlp_bias});
    Attribute("gated", int64_t{gated});
    Attribute("activation", Activation());
    const int64_t attended = h.Count() * h.head_dim, U = gated ? 2 * I : I;
    Input("x", sol::kFloat, {1, h.tokens, hidden});
    Output("y");
    Cache(h, int8, OfLayers(h.kv_pages));
    Counts("active_up", OfLayers(UpTo(hidden)));
    Counts("active_down", OfLayers(UpTo(I)));
    Counts("active_qkv", OfLayers(UpTo(hidden)));
    Counts("active_o", OfLayers(UpTo(attended)));
    Rotary(h, true);
    if (int8) Scales(h);
    for (int norm = 0; norm < (shared_norm ? 1 : 2); ++norm) {
      Vector("norm", hidden);
      if (layer_norm) Vector("norm_bias", hidden);
    }
    Matrix(hidden, h.QkvSize(), qkv_bits, true);
    if (qkv_bias) Vector("qkv_bias", h.QkvSize());
    Matrix(attended, hidden, o_bits, true);
    if (output_bias) Vector("output_bias", hidden);
    Matrix(hidden, U, up_bits, true);
    if (mlp_bias) Vector("up_bias", U);
    Matrix(I, hidden, down_bits, true);
    if (mlp_bias) Vector("down_bias", hidden);
    Input("total_length", sol::kInt64, {1});
  }

  // Replaces an input's tensor by one of another type or shape.
  void Replace(OrtKernelInfo::Input& input, sol::Type type, std::vector<int64_t> dims) {
    if (stand_in::ElementsOf(dims) < 0) {
      too_large = true;
      return;
    }
    values_.push_back(std::make_unique<OrtValue>(type, std::move(dims)));
    Fill(*values_.back());
    input.value = values_.back().get();
    input.declared = values_.back()->info;
    if (!input.constant && !declare_) std::fill(input.declared.dims.begin(), input.declared.dims.end(), -1);
  }

  // Sets an element of an int64 input: an id or a count.
  void SetNumber() {
    std::vector<const OrtValue*> numbers;
    for (const auto& input : node.inputs) {
      if (input.value != nullptr && input.value->info.type == sol::kInt64 && input.value->Bytes() > 0) numbers.push_back(input.value);
    }
    if (numbers.empty()) return;
    const OrtValue& value = *numbers[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(numbers.size())))];
    const int64_t number = bytes_.Flag() ? bytes_.Near(Bound()) : bytes_.Number(0);
    std::memcpy(value.data.get() + static_cast<size_t>(bytes_.Byte()) * 8 % value.Bytes(), &number, 8);
  }
  // A length or an attribute: a number that is likely to bound another one.
  int64_t Bound() {
    if (bytes_.Flag() && !node.attributes.empty()) {
      const auto& attribute = node.attributes[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(node.attributes.size())))];
      const int64_t* number = std::get_if<int64_t>(&attribute.value);
      return number != nullptr ? *number : 0;
    }
    const OrtValue* value = node.inputs[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(node.inputs.size())))].value;
    if (value == nullptr || value->info.dims.empty()) return 0;
    return value->info.dims[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(value->info.dims.size())))];
  }

  void Damage() {
    constexpr sol::Type kTypes[] = {sol::kFloat, sol::kFloat16, sol::kInt8, sol::kUInt8, sol::kUInt4, sol::kInt64};
    for (int64_t left = bytes_.Below(4); left > 0; --left) {
      damaged = true;
      const int64_t what = bytes_.Below(14);
      if (what < 5) {  // an attribute
        if (node.attributes.empty()) continue;
        const size_t at = static_cast<size_t>(bytes_.Below(static_cast<int64_t>(node.attributes.size())));
        auto& value = node.attributes[at].value;
        const int64_t* number = std::get_if<int64_t>(&value);
        switch (what) {
          case 0: node.attributes.erase(node.attributes.begin() + static_cast<std::ptrdiff_t>(at)); break;
          case 1: value = std::string(static_cast<size_t>(bytes_.Below(300)), static_cast<char>(bytes_.Byte())); break;
          case 2: {
            const auto bits = static_cast<uint32_t>(bytes_.Word());
            float any;
            std::memcpy(&any, &bits, sizeof(any));
            value = any;
            break;
          }
          default: value = bytes_.Number(number != nullptr ? *number : 0);
        }
        continue;
      }
      if (what == 5) {
        SetNumber();
        continue;
      }
      if (node.inputs.empty()) continue;
      OrtKernelInfo::Input& input = node.inputs[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(node.inputs.size())))];
      if (input.value == nullptr) continue;
      std::vector<int64_t> dims = input.value->info.dims;
      const size_t axis = dims.empty() ? 0 : static_cast<size_t>(bytes_.Below(static_cast<int64_t>(dims.size())));
      switch (what) {
        case 6:
        case 11:
          if (dims.empty()) break;
          dims[axis] = bytes_.Number(dims[axis]);
          if (dims[axis] < 0) dims[axis] = 0;
          Replace(input, input.value->info.type, dims);
          break;
        case 7:
          dims.resize(static_cast<size_t>(bytes_.Below(10)), 1);
          Replace(input, input.value->info.type, dims);
          break;
        case 8: Replace(input, bytes_.OneOf(kTypes), dims); break;
        case 9: input.constant = !input.constant; break;
        case 10: {
          // What a node computes may have another shape than the graph declares.
          if (input.constant || dims.empty()) break;
          const std::vector<int64_t> declared = dims;
          dims[axis] = std::max<int64_t>(bytes_.Flag() ? bytes_.Number(dims[axis]) : dims[axis] - 1, 0);
          Replace(input, input.value->info.type, dims);
          input.declared.dims = declared;
          break;
        }
        case 12:
          if (bytes_.Flag()) {
            node.inputs.pop_back();
          } else {
            input.name.clear();
            input.value = nullptr;
          }
          break;
        default:
          if (bytes_.Flag()) {
            node.outputs.pop_back();
          } else {
            node.outputs[static_cast<size_t>(bytes_.Below(static_cast<int64_t>(node.outputs.size())))].name.clear();
          }
          if (node.outputs.empty()) node.outputs.push_back({"y", nullptr});
      }
    }
  }

  Bytes bytes_;
  Random random_;
  Content content_ = Content::kPlain;
  bool declare_ = false, in_place_ = false, three_ = false;
  int64_t layers_ = 1, layer_ = 0;
  std::vector<std::unique_ptr<OrtValue>> values_;
};

}  // namespace fuzz
