// Ports and attributes of the operators that attend, the same on every provider.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <string>

#include "common/attention_limits.h"
#include "common/onnx/op.h"

namespace sol {

// First ports of kAttentionInputs in every operator that attends. Outputs of the cache are 1 … 4, and an int8 cache's scales follow.
inline constexpr size_t kKeyPort = 1, kScaleOutput = 5;

// Inputs of an operator that attends: its cache, and how far to read it.
template <Type Element>
inline constexpr std::array<Port, 6> kAttentionInputs{{{"past_key", Element},
                                                       {"past_value", Element},
                                                       {"past_key_codes", kUInt8},
                                                       {"past_key_range", kFloat16},
                                                       {"past_length", kInt64},
                                                       {"kv_pages", kInt64}}};

// SparseAttention's. At last come an int8 cache's scales and total_length, which only the function body reads: their place decides no type.
template <Type Element>
inline constexpr auto kSparseAttentionInputs = Join(std::array<Port, 1>{{{"qkv", kFloat}}}, kAttentionInputs<Element>,
                                                    std::array<Port, 5>{{{"cos", kFloat},
                                                                         {"sin", kFloat},
                                                                         {"rest0", kAny, kOptional},
                                                                         {"rest1", kAny, kOptional},
                                                                         {"rest2", kAny, kOptional}}});

// Of an operator that attends: what it computes, and its cache, whose keys and values are of type Element.
template <Type Element>
inline constexpr std::array<Port, 7> kAttentionOutputs{{{"y", kFloat},
                                                        {"present_key", Element},
                                                        {"present_value", Element},
                                                        {"present_key_codes", kUInt8},
                                                        {"present_key_range", kFloat16},
                                                        {"present_key_scale", kFloat16, kOptional},
                                                        {"present_value_scale", kFloat16, kOptional}}};

// Sizes as the attributes give them.
struct AttentionSizes {
  int64_t heads, kv_heads, head_dim, rotary_dim, sinks;
  int64_t window;  // how many tokens a token attends to, itself included; 0: all
  float scale;
  float softcap;   // of the products of q and k, after their scale; 0: none
};

// Reads and checks them for the operator `op`. With `int8` its cache holds codes, and their scales, keys' and values', are its inputs from
// `scale_port` on.
inline AttentionSizes ReadAttentionSizes(const Attributes& attributes, const char* op, bool int8, size_t scale_port) {
  AttentionSizes sizes{};
  sizes.heads = attributes.Int("num_heads", 1, 1024);
  sizes.kv_heads = attributes.Int("kv_heads", 1, sizes.heads);
  sizes.head_dim = attributes.Int("head_dim", 2, kMaxHeadDim);
  sizes.rotary_dim = attributes.Int("rotary_dim", 0, sizes.head_dim);
  attributes.Int("page_size", kPageSize, kPageSize);
  sizes.sinks = attributes.Int("sinks", 0, kMaxCapacity);
  sizes.scale = attributes.Float("softmax_scale");
  sizes.window = std::max<int64_t>(0, attributes.IntOr("window", 0));
  sizes.softcap = attributes.FloatOr("softcap", 0.0f);
  const auto refuse = [&](const std::string& what) { throw Error(std::string(op) + ": " + what + "; export the bundle again"); };
  if (sizes.heads % sizes.kv_heads != 0 || sizes.heads / sizes.kv_heads > kMaxGroup) {
    refuse("attribute num_heads: got " + std::to_string(sizes.heads) + ", expected a multiple of kv_heads " + std::to_string(sizes.kv_heads) +
           ", at most " + std::to_string(kMaxGroup) + " times it");
  }
  if (sizes.head_dim % 2 != 0) refuse("attribute head_dim: got " + std::to_string(sizes.head_dim) + ", expected an even number");
  if (sizes.rotary_dim % 2 != 0) refuse("attribute rotary_dim: got " + std::to_string(sizes.rotary_dim) + ", expected an even number");
  if (attributes.IntOr("qk_norm_after_rope", 0) != 0) {
    if (attributes.StringOr("qk_norm", "none") == "none") refuse("attribute qk_norm_after_rope: got 1 without qk_norm, expected 0");
    sizes.rotary_dim = 0;  // q and k come rotated
  }
  for (const size_t part : {0, 1}) {
    const std::string name = part == 0 ? "key_scale" : "value_scale";
    if (int8 && !attributes.HasInput(scale_port + part)) refuse("got an int8 cache without past_" + name);
    if (int8 && !attributes.HasOutput(kScaleOutput + part)) refuse("got an int8 cache without present_" + name);
  }
  if (!std::isfinite(sizes.scale)) refuse("attribute softmax_scale: got a non-finite number");
  if (!std::isfinite(sizes.softcap) || sizes.softcap < 0.0f) {
    refuse("attribute softcap: got " + std::to_string(sizes.softcap) + ", expected a finite number from 0");
  }
  return sizes;
}

// The capacity of the cache that the input past_key is.
inline int64_t ReadCapacity(const char* op, const Tensor& key, bool int8, int64_t kv_heads, int64_t head_dim) {
  Expect(op, "past_key", key, int8 ? kInt8 : kFloat16, {1, kv_heads, -1, head_dim});
  const int64_t capacity = key.dims[2], most = kMaxCapacity / kv_heads;
  if (capacity % kPageSize != 0 || capacity > most) {
    throw Error(std::string(op) + ": input past_key: got capacity " + std::to_string(capacity) + ", expected a multiple of " +
                std::to_string(kPageSize) + " up to " + std::to_string(most));
  }
  return capacity;
}

}  // namespace sol
