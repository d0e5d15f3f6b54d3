// Tensors of ONNX Runtime's C API, and what goes wrong with them.
#pragma once

#ifndef ORT_API_MANUAL_INIT
#define ORT_API_MANUAL_INIT
#endif
#include <onnxruntime_c_api.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace sol {

// The host's function table. Every registration sets it to the same address, also while operators of other sessions run.
extern std::atomic<const OrtApi*> g_api;
inline const OrtApi& Api() { return *g_api.load(std::memory_order_relaxed); }

// One line for the user: what, got, expected.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws what an API call reported.
inline void Check(OrtStatus* status) {
  if (status == nullptr) return;
  std::string message = Api().GetErrorMessage(status);
  Api().ReleaseStatus(status);
  throw Error(message);
}

using Type = ONNXTensorElementDataType;
constexpr Type kAny = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
constexpr Type kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr Type kFloat16 = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
constexpr Type kInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT8;
constexpr Type kUInt8 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
constexpr Type kUInt4 = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT4;
constexpr Type kInt64 = ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;

// Text of a file as an error shows it: on one line, and no more than its beginning.
inline std::string Shown(const std::string& text) {
  constexpr size_t kMost = 60;
  std::string shown = text.substr(0, kMost);
  for (char& c : shown) {
    if (c < ' ' || c > '~') c = '?';
  }
  return text.size() > kMost ? shown + "..." : shown;
}

// A view of a tensor; `data` is null where an optional input is absent. Of a rank above kMaxRank, the lengths are unknown.
struct Tensor {
  static constexpr size_t kMaxRank = 8;
  const void* data = nullptr;
  Type type = kAny;
  size_t rank = 0;
  std::array<int64_t, kMaxRank> dims{};

  explicit operator bool() const { return data != nullptr; }
  template <class T>
  const T* As() const {
    return static_cast<const T*>(data);
  }
  // Of a rank up to kMaxRank.
  int64_t Elements() const {
    int64_t n = 1;
    for (size_t i = 0; i < rank; ++i) {
      if (dims[i] == 0) return 0;  // the product of the other lengths may be beyond 64 bits
    }
    for (size_t i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  std::string Shape() const {
    if (rank > kMaxRank) return "of rank " + std::to_string(rank);
    std::string text = "[";
    for (size_t i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(dims[i]);
    return text + "]";
  }
};

inline Tensor Describe(const OrtValue* value) {
  Tensor tensor;
  if (value == nullptr) return tensor;
  OrtTensorTypeAndShapeInfo* info = nullptr;
  Check(Api().GetTensorTypeAndShape(value, &info));
  OrtStatus* status = Api().GetTensorElementType(info, &tensor.type);
  if (status == nullptr) status = Api().GetDimensionsCount(info, &tensor.rank);
  if (status == nullptr && tensor.rank <= Tensor::kMaxRank) status = Api().GetDimensions(info, tensor.dims.data(), tensor.rank);
  Api().ReleaseTensorTypeAndShapeInfo(info);
  Check(status);
  void* data = nullptr;
  Check(Api().GetTensorMutableData(const_cast<OrtValue*>(value), &data));
  static const char empty = 0;  // an empty tensor is present all the same
  tensor.data = data != nullptr ? data : &empty;
  return tensor;
}

// Throws unless the tensor has this type and shape; -1 stands for any length.
inline void Expect(const char* op, const char* name, const Tensor& tensor, Type type,
                   std::initializer_list<int64_t> shape) {
  const auto fail = [&](const std::string& got, const std::string& expected) {
    throw Error(std::string(op) + ": input " + name + ": got " + got + ", expected " + expected +
                "; export the bundle again");
  };
  if (!tensor) fail("nothing", "a tensor");
  if (tensor.type != type) fail("element type " + std::to_string(tensor.type), std::to_string(type));
  bool same = tensor.rank == shape.size();
  size_t i = 0;
  Tensor expected;
  expected.rank = shape.size();
  for (const int64_t length : shape) {
    if (same && length >= 0 && tensor.dims[i] != length) same = false;
    expected.dims[i++] = length;
  }
  if (!same) fail("shape " + tensor.Shape(), expected.Shape());
}

}  // namespace sol
