// Ports and attributes of DecoderLayer, the same on every provider.
#pragma once

#include <array>
#include <cmath>
#include <string>

#include "common/inputs/attention_inputs.h"
#include "common/nested_format.h"
#include "common/onnx/op.h"

namespace sol {

// Scales of an int8 cache, then the weights.
inline constexpr size_t kLayerScalePort = 13;
template <Type Element>
inline constexpr size_t kFirstLayerWeight = kLayerScalePort + (Element == kInt8 ? 2 : 0);

template <Type Element>
inline constexpr auto kDecoderLayerInputs = [] {
  // Scales, norms, planes and biases as the attributes say, at last total_length, which only the function body reads: their place decides
  // no type.
  constexpr size_t kMostWeights = 4 * 2 + 1 + 4 * 6;
  std::array<Port, 3 + kMostWeights> rest{};
  for (Port& port : rest) port = {"weight", kAny, kOptional};
  return Join(std::array<Port, 1>{{{"x", kFloat}}}, kAttentionInputs<Element>,
              std::array<Port, 6>{{{"active_up", kInt64},
                                   {"active_down", kInt64},
                                   {"active_qkv", kInt64},
                                   {"active_o", kInt64},
                                   {"cos", kFloat},
                                   {"sin", kFloat}}},
              rest);
}();

inline int64_t LayerIndex(const Attributes& attributes) { return attributes.Int("layer", 0, int64_t{1} << 20); }

// True if the norms are layer norms, which have a bias, rather than RMS norms.
inline bool HasLayerNorm(const Attributes& attributes, const char* op) {
  const std::string norm = attributes.String("norm");
  if (norm != "rms" && norm != "layer") {
    throw Error(std::string(op) + ": attribute norm: got " + Shown(norm) + ", expected rms or layer; export the bundle again");
  }
  return norm == "layer";
}

// Place of the norms: at the inputs of attention and MLP, at their outputs, or both.
struct NormPlace {
  bool before, after;
};
inline NormPlace ReadNormPlace(const Attributes& attributes, const char* op) {
  const std::string place = attributes.StringOr("norm_place", "before");
  if (place == "before") return {true, false};
  const bool parallel = attributes.Int("parallel_residual", 0, 1) != 0;
  if ((place != "after" && place != "around") || parallel) {
    throw Error(std::string(op) + ": attribute norm_place: got " + Shown(place) + (parallel ? " in a parallel layer" : "") +
                ", expected before, and in sequential layers after or around too; export the bundle again");
  }
  return {place == "around", true};
}

// True if the MLP of a parallel layer gets the normed input of attention.
inline bool HasSharedNorm(const Attributes& attributes, const char* op) {
  const bool shared = attributes.Int("shared_norm", 0, 1) != 0;
  if (shared && attributes.Int("parallel_residual", 0, 1) == 0) {
    throw Error(std::string(op) + ": attribute shared_norm: got 1 in a sequential layer, expected 0; export the bundle again");
  }
  return shared;
}

// Kind of the norm of q and k.
enum class QkNormKind { kNone, kHead, kRow };
inline QkNormKind ReadQkNorm(const Attributes& attributes, const char* op) {
  const std::string kind = attributes.StringOr("qk_norm", "none");
  if (kind == "none") return QkNormKind::kNone;
  if (kind == "head") return QkNormKind::kHead;
  if (kind == "row") return QkNormKind::kRow;
  throw Error(std::string(op) + ": attribute qk_norm: got " + Shown(kind) + ", expected none, head or row; export the bundle again");
}

// Number that a norm adds to the mean square or the variance.
inline float ReadEpsilon(const Attributes& attributes, const char* op) {
  const float epsilon = attributes.Float("epsilon");
  if (!(epsilon >= 0.0f) || !std::isfinite(epsilon)) {
    throw Error(std::string(op) + ": attribute epsilon: got " + std::to_string(epsilon) + ", expected a finite number from 0; export the bundle again");
  }
  return epsilon;
}

// Throws if the output of the heads, `width` numbers, is not whole blocks of the next matrix.
inline void ExpectWholeBlocks(const char* op, int64_t width) {
  if (width % static_cast<int64_t>(kBlock) != 0) {
    throw Error(std::string(op) + ": attributes num_heads * head_dim: got " + std::to_string(width) +
                ", expected a multiple of 32; export the bundle again");
  }
}

}  // namespace sol
