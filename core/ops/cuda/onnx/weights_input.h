// Weights as a node's inputs: initializers, or inputs of the graph that the host has bound to device memory. The shapes that the graph gives
// are checked once. Where weights lie, and the shapes of those that are no initializers, is asked at every run.
#pragma once

#include <array>
#include <initializer_list>
#include <string>

#include "common/inputs/nested_inputs.h"
#include "common/onnx/node.h"
#include "cuda/matmul/matmul.h"

namespace sol::cuda {

// An input of one type and shape.
class WeightInput {
 public:
  WeightInput() = default;
  WeightInput(const Attributes& attributes, const char* op, size_t port, const char* name, Type type, std::initializer_list<int64_t> shape)
      : op_(op), port_(port), name_(name), type_(type), rank_(shape.size()) {
    size_t i = 0;
    for (const int64_t length : shape) dims_[i++] = length;
    Tensor declared = attributes.InputType(port);
    bool known = declared.type != kAny && declared.rank > 0;
    for (size_t d = 0; d < declared.rank; ++d) known = known && declared.dims[d] >= 0;
    if (!known) return;
    static const char there = 0;
    declared.data = &there;
    ExpectShape(declared);
    checked_ = attributes.IsConstant(port);
  }

  explicit operator bool() const { return op_ != nullptr; }
  template <class T>
  const T* Read(const Context& context) const {
    if (op_ == nullptr) return nullptr;
    if (!checked_) ExpectShape(context.Input(port_));
    return static_cast<const T*>(context.InputData(port_));
  }

 private:
  void ExpectShape(const Tensor& tensor) const {
    switch (rank_) {
      case 1: return Expect(op_, name_, tensor, type_, {dims_[0]});
      case 2: return Expect(op_, name_, tensor, type_, {dims_[0], dims_[1]});
      default: return Expect(op_, name_, tensor, type_, {dims_[0], dims_[1], dims_[2]});
    }
  }

  const char* op_ = nullptr;
  size_t port_ = 0;
  const char* name_ = nullptr;
  Type type_ = kAny;
  size_t rank_ = 0;
  std::array<int64_t, 3> dims_{};
  bool checked_ = false;  // for good; else every run looks
};

// A matrix; `op` names it in errors.
class MatrixInput {
 public:
  MatrixInput() = default;
  MatrixInput(const Attributes& attributes, const char* op, const NestedPorts& ports, bool channel_major, int64_t K, int64_t N, int bits) {
    const int64_t blocks = K / static_cast<int64_t>(sol::kBlock);
    const auto input = [&](int port, const char* name, Type type, std::initializer_list<int64_t> shape) {
      return WeightInput(attributes, op, static_cast<size_t>(port), name, type, shape);
    };
    shape_.K = static_cast<int>(K);
    shape_.N = static_cast<int>(N);
    shape_.bits = bits;
    shape_.channel_major = channel_major;
    if (bits == 3) {
      ExpectCodeTiles(op, N);
      low_ = input(ports.base, "low", kUInt8, {K, N / 4});
      high_ = input(ports.base + 1, "high", kUInt8, {K, N / 8});
      block_scale_ = input(ports.base + 2, "block_scale", kUInt8, {blocks, N});
      output_scale_ = input(ports.base + 3, "output_scale", kFloat16, {N});
      codebook_ = input(ports.base + 4, "codebook", kInt8, {4, 8});
      return;
    }
    base_ = channel_major ? input(ports.base, "base", kUInt4, {K, N}) : input(ports.base, "base", kUInt8, {blocks, N, 16});
    scale_ = input(ports.scale, "scale", kFloat16, {blocks, N});
    zero_ = input(ports.zero, "zero", kUInt8, {blocks, N});
    if (bits > 4) plane1_ = input(ports.plane1, "plane1", kUInt8, {blocks, N, 8});
    if (bits > 6) plane2_ = input(ports.plane2, "plane2", kUInt8, {blocks, N, 8});
  }

  // Sizes alone.
  const Weights& Shape() const { return shape_; }
  Weights Read(const Context& context) const {
    Weights w = shape_;
    w.base = base_.Read<uint8_t>(context);
    w.scale = scale_.Read<uint16_t>(context);
    w.zero = zero_.Read<uint8_t>(context);
    w.plane1 = plane1_.Read<uint8_t>(context);
    w.plane2 = plane2_.Read<uint8_t>(context);
    w.low = low_.Read<uint8_t>(context);
    w.high = high_.Read<uint8_t>(context);
    w.block_scale = block_scale_.Read<uint8_t>(context);
    w.output_scale = output_scale_.Read<uint16_t>(context);
    w.codebook = codebook_.Read<int8_t>(context);
    return w;
  }

 private:
  WeightInput base_, scale_, zero_, plane1_, plane2_;  // none at 3 bits
  WeightInput low_, high_, block_scale_, output_scale_, codebook_;  // at 3 bits
  Weights shape_;
};

// The block-major matrix of an operator that has one input, this matrix and no more.
inline MatrixInput OnlyMatrix(const Attributes& attributes, const char* op) {
  const MatrixSize size = OnlyMatrixSize(attributes, op);
  return MatrixInput(attributes, op, {1, 2, 3, 4, 5}, false, size.K, size.N, size.bits);
}

}  // namespace sol::cuda
