// Reads weights from a node's constant inputs, with every check that keeps a damaged bundle from crashing the host. Nothing is copied.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/inputs/nested_inputs.h"
#include "common/onnx/node.h"
#include "cpu/matmul/matmul_kernels.h"

namespace sol {

inline Nested ReadNested(const Attributes& attributes, const char* op, const NestedPorts& ports, bool channel_major, int64_t K, int64_t N,
                         int bits) {
  const int64_t blocks = K / static_cast<int64_t>(kBlock);
  const auto read = [&](int port, const char* name, Type type, std::initializer_list<int64_t> shape) {
    const Tensor tensor = attributes.Constant(static_cast<size_t>(port), name);
    Expect(op, name, tensor, type, shape);
    return tensor;
  };
  Nested w;
  w.K = static_cast<size_t>(K);
  w.N = static_cast<size_t>(N);
  w.bits = bits;
  if (bits == 3) {
    ExpectCodeTiles(op, N);
    w.low = read(ports.base, "low", kUInt8, {K, N / 4}).As<uint8_t>();
    w.high = read(ports.base + 1, "high", kUInt8, {K, N / 8}).As<uint8_t>();
    w.block_scale = read(ports.base + 2, "block_scale", kUInt8, {blocks, N}).As<uint8_t>();
    w.output_scale = read(ports.base + 3, "output_scale", kFloat16, {N}).As<uint16_t>();
    w.codebook = read(ports.base + 4, "codebook", kInt8, {4, 8}).As<int8_t>();
    if (std::find(w.codebook, w.codebook + kCodebookSize, -128) != w.codebook + kCodebookSize) {
      throw Error(std::string(op) + ": input codebook: got -128, expected -127 to 127; export the bundle again");
    }
    return w;
  }
  w.base = channel_major ? read(ports.base, "base", kUInt4, {K, N}).As<uint8_t>()
                         : read(ports.base, "base", kUInt8, {blocks, N, 16}).As<uint8_t>();
  w.scale = read(ports.scale, "scale", kFloat16, {blocks, N}).As<uint16_t>();
  w.zero = read(ports.zero, "zero", kUInt8, {blocks, N}).As<uint8_t>();
  if (bits > 4) w.plane1 = read(ports.plane1, "plane1", kUInt8, {blocks, N, 8}).As<uint8_t>();
  if (bits > 6) w.plane2 = read(ports.plane2, "plane2", kUInt8, {blocks, N, 8}).As<uint8_t>();
  return w;
}

// The block-major matrix of an operator that has one input, this matrix and `others` more.
inline Nested ReadOnlyMatrix(const Attributes& attributes, const char* op, int others = 0) {
  const MatrixSize size = OnlyMatrixSize(attributes, op, others);
  return ReadNested(attributes, op, {1, 2, 3, 4, 5}, false, size.K, size.N, size.bits);
}

// A vector of `length` floats.
inline const float* ReadVector(const Attributes& attributes, const char* op, int port, const char* name, int64_t length) {
  const Tensor tensor = attributes.Constant(static_cast<size_t>(port), name);
  Expect(op, name, tensor, kFloat, {length});
  return tensor.As<float>();
}

}  // namespace sol
