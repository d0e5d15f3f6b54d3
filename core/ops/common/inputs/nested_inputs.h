// Ports and attributes of the operators on nested matrices, the same on every provider.
#pragma once

#include <array>
#include <cmath>
#include <string>

#include "common/activation.h"
#include "common/nested_format.h"
#include "common/onnx/op.h"

namespace sol {

// A matrix and nothing else, at the bits that the attributes say.
template <Type Base>
inline constexpr std::array<Port, 5> kMatrixInputs{{{"base", Base},
                                                    {"scale", kFloat16},
                                                    {"zero", kUInt8},
                                                    {"plane1", kUInt8, kOptional},
                                                    {"plane2", kUInt8, kOptional}}};

// After a matrix that is screened, the matrix of 3 bits that does so; one place further down where there is no plane 2.
inline constexpr std::array<Port, 5> kScreenInputs = [] {
  std::array<Port, 5> ports{};
  for (Port& port : ports) port = {"screen", kAny, kOptional};
  return ports;
}();

// A channel-major matrix, nested or of 3 bits: the bits decide the types.
inline constexpr std::array<Port, 5> kLayerMatrixInputs{{{"base_or_low", kAny},
                                                         {"scale_or_high", kAny},
                                                         {"zero_or_block_scale", kAny},
                                                         {"plane1_or_output_scale", kAny, kOptional},
                                                         {"plane2_or_codebook", kAny, kOptional}}};

inline constexpr auto kMlpInputs = [] {
  std::array<Port, 12> weights{};  // both matrices and their biases as the attributes say: their place decides no type
  for (Port& port : weights) port = {"weight", kAny, kOptional};
  return Join(std::array<Port, 3>{{{"x", kFloat}, {"active_up", kInt64}, {"active_down", kInt64}}}, weights);
}();

// Ports of a matrix's planes among the inputs; of no meaning for a plane that its bits do not have. At 3 bits its inputs begin at `base`.
struct NestedPorts {
  int base, scale, zero, plane1, plane2;
};

inline int64_t Channels(const Attributes& attributes, const char* op, const char* name) {
  constexpr int64_t kMost = int64_t{1} << 24;
  const int64_t value = attributes.Int(name, 1, kMost);
  if (value % static_cast<int64_t>(kBlock) != 0) {
    throw Error(std::string(op) + ": attribute " + name + ": got " + std::to_string(value) +
                ", expected a multiple of 32; export the bundle again");
  }
  return value;
}

// Throws if the last axis of the input x has not `channels` entries.
inline void ExpectChannels(const char* op, const Tensor& x, size_t channels) {
  if (x.rank == 0 || x.rank > Tensor::kMaxRank || x.dims[x.rank - 1] != static_cast<int64_t>(channels)) {
    throw Error(std::string(op) + ": input x: got shape " + x.Shape() + ", expected [..., " + std::to_string(channels) + "]");
  }
}

// Of a matrix of a layer, or of another one, which is nested.
enum class MatrixKind { kLayer, kOther };

inline int ExpectBits(const char* op, const char* name, int64_t bits, MatrixKind kind) {
  const bool layer = kind == MatrixKind::kLayer;
  if (bits != 4 && bits != 6 && bits != 8 && !(layer && bits == 3)) {
    throw Error(std::string(op) + ": attribute " + name + ": got " + std::to_string(bits) + ", expected " + (layer ? "3, " : "") +
                "4, 6 or 8; export the bundle again");
  }
  return static_cast<int>(bits);
}

inline int Bits(const Attributes& attributes, const char* op, MatrixKind kind = MatrixKind::kLayer) {
  return ExpectBits(op, "bits", attributes.Int("bits"), kind);
}

// Of one of a node's matrices, by the name of an attribute that only a node of mixed precision has.
inline int BitsOf(const Attributes& attributes, const char* op, const char* name) {
  return ExpectBits(op, name, attributes.IntOr(name, Bits(attributes, op)), MatrixKind::kLayer);
}

// Refuses a number of outputs that is no multiple of 32, at 3 bits.
inline void ExpectCodeTiles(const char* op, int64_t N) {
  if (N % static_cast<int64_t>(kCodeTile) != 0) {
    throw Error(std::string(op) + ": got " + std::to_string(N) + " outputs at 3 bits, expected a multiple of 32; export the bundle again");
  }
}

inline void ExpectInputs(const Attributes& attributes, const char* op, size_t expected) {
  const size_t count = attributes.InputCount();
  if (count != expected) {
    throw Error(std::string(op) + ": got " + std::to_string(count) + " inputs, expected " + std::to_string(expected) +
                " at its bits; export the bundle again");
  }
}

struct MatrixSize {
  int bits;
  int64_t K, N;
};

// Of the block-major matrix of an operator that has one input, this matrix and `others` more.
inline MatrixSize OnlyMatrixSize(const Attributes& attributes, const char* op, int others = 0) {
  const MatrixSize size{Bits(attributes, op, MatrixKind::kOther), Channels(attributes, op, "K"), attributes.Int("N", 1, int64_t{1} << 30)};
  ExpectInputs(attributes, op, static_cast<size_t>(4 + PlanesAt(size.bits) + others));
  return size;
}

// Bits of the first pass of a screened product. At 3 a matrix of its own comes after the other one.
inline int ScreenBits(const Attributes& attributes, const char* op) {
  const int64_t bits = attributes.IntOr("screen_bits", 4);
  if (bits != 3 && bits != 4) {
    throw Error(std::string(op) + ": attribute screen_bits: got " + std::to_string(bits) + ", expected 3 or 4; export the bundle again");
  }
  return static_cast<int>(bits);
}

// Number of outputs of a screened product that are read at all bits; 0 for a whole product.
inline size_t Candidates(const Attributes& attributes, const char* op, int bits) {
  const int64_t candidates = attributes.IntOr("candidates", 0);
  if (candidates < 0 || (candidates > 0 && bits == 4)) {
    throw Error(std::string(op) + ": attribute candidates: got " + std::to_string(candidates) + " at " + std::to_string(bits) +
                " bits, expected 0 or more, and 0 at 4 bits; export the bundle again");
  }
  return static_cast<size_t>(candidates);
}

// Number added to the outputs that are not read at all bits.
inline float TailOffset(const Attributes& attributes, const char* op) {
  const float offset = attributes.Float("tail_offset");
  if (!std::isfinite(offset)) throw Error(std::string(op) + ": attribute tail_offset: got no finite number; export the bundle again");
  return offset;
}

// Of the channel-major matrix of an operator that has an input, a count and this matrix.
inline MatrixSize PrunedMatrixSize(const Attributes& attributes, const char* op) {
  const MatrixSize size{Bits(attributes, op), Channels(attributes, op, "K"), attributes.Int("N", 2, int64_t{1} << 30)};
  if (size.N % 2 != 0) {
    throw Error(std::string(op) + ": attribute N: got " + std::to_string(size.N) + ", expected an even number; export the bundle again");
  }
  ExpectInputs(attributes, op, static_cast<size_t>(2 + PortsAt(size.bits) + PlanesAt(size.bits)));
  return size;
}

inline Activation ReadActivation(const Attributes& attributes, const char* op) {
  const std::string name = attributes.String("activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu2") return Activation::kRelu2;
  throw Error(std::string(op) + ": attribute activation: got " + Shown(name) + ", expected silu, gelu, gelu_tanh, relu or relu2; export the bundle again");
}

// The inputs of PrunedMLP that depend on its bits.
struct MlpPorts {
  int up_bits, down_bits;
  NestedPorts up, down;
  int biases;  // up's, then down's
};

inline MlpPorts PortsOfMlp(const Attributes& attributes, const char* op) {
  MlpPorts ports{BitsOf(attributes, op, "up_bits"), BitsOf(attributes, op, "down_bits"), {3, 4, 5, 0, 0}, {}, 0};
  const int down = 3 + PortsAt(ports.up_bits);
  ports.down = {down, down + 1, down + 2, 0, 0};
  ports.biases = down + PortsAt(ports.down_bits);
  for (const auto plane : {&NestedPorts::plane1, &NestedPorts::plane2}) {
    const int above = plane == &NestedPorts::plane1 ? 4 : 6;
    if (ports.up_bits > above) ports.up.*plane = ports.biases++;
    if (ports.down_bits > above) ports.down.*plane = ports.biases++;
  }
  const bool has_bias = attributes.Int("has_bias", 0, 1) != 0;
  ExpectInputs(attributes, op, static_cast<size_t>(ports.biases + (has_bias ? 2 : 0)));
  return ports;
}

}  // namespace sol
