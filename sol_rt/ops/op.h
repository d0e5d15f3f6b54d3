// What every operator needs of ONNX Runtime's C API: tensors, attributes, errors, parallel loops and registration.
//
// An operator is a class:
//
//   class MyOp {
//    public:
//     static constexpr const char* kName = "MyOp";
//     static constexpr std::array<sol::Port, 2> kInputs{{{"x", sol::kFloat}, {"w", sol::kUInt8, sol::kOptional}}};
//     static constexpr std::array<sol::Port, 1> kOutputs{{{"y", sol::kFloat}}};
//     explicit MyOp(const sol::Attributes& attributes);   // may throw sol::Error: the session is refused
//     void Compute(sol::Context& context) const;          // may throw sol::Error: the run fails with its message
//   };
//   const OrtCustomOp* MyOpDefinition() { return sol::Define<MyOp>(); }
//
// Compute may be entered by several threads at once: keep scratch memory in thread_local Buffers.
#pragma once

#ifndef ORT_API_MANUAL_INIT
#define ORT_API_MANUAL_INIT
#endif
#include <onnxruntime_c_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <initializer_list>
#include <new>
#include <stdexcept>
#include <string>
#include <thread>
#include <type_traits>

// The execution provider that a library's operators are for.
#ifndef SOL_PROVIDER
#define SOL_PROVIDER "CPUExecutionProvider"
#endif

namespace sol {

// The host's function table; set once by RegisterCustomOps before any operator runs.
extern const OrtApi* g_api;
inline const OrtApi& Api() { return *g_api; }

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

constexpr bool kOptional = true;

struct Port {
  const char* name;
  Type type;  // kAny leaves the type to the operator's own check
  bool optional = false;
};

// Lists of ports as one.
template <size_t... kSizes>
constexpr std::array<Port, (kSizes + ...)> Join(const std::array<Port, kSizes>&... lists) {
  std::array<Port, (kSizes + ...)> joined{};
  size_t at = 0;
  const auto add = [&](const auto& list) {
    for (const Port& port : list) joined[at++] = port;
  };
  (add(lists), ...);
  return joined;
}

// A view of a tensor; `data` is null where an optional input is absent.
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
  int64_t Elements() const {
    int64_t n = 1;
    for (size_t i = 0; i < rank; ++i) n *= dims[i];
    return n;
  }
  std::string Shape() const {
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
  const bool fits = tensor.rank <= Tensor::kMaxRank;
  if (status == nullptr && fits) status = Api().GetDimensions(info, tensor.dims.data(), tensor.rank);
  Api().ReleaseTensorTypeAndShapeInfo(info);
  Check(status);
  if (!fits) throw Error("a tensor of rank " + std::to_string(tensor.rank) + ", expected at most 8");
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

// Attributes and constant inputs of a node, read while its kernel is made.
class Attributes {
 public:
  Attributes(const char* op, const OrtKernelInfo* info) : op_(op), info_(info) {}

  int64_t Int(const char* name) const {
    int64_t value = 0;
    CheckRead(name, Api().KernelInfoGetAttribute_int64(info_, name, &value));
    return value;
  }
  int64_t Int(const char* name, int64_t least, int64_t most) const {
    const int64_t value = Int(name);
    if (value < least || value > most) {
      throw Error(std::string(op_) + ": attribute " + name + ": got " + std::to_string(value) + ", expected " +
                  std::to_string(least) + " to " + std::to_string(most) + "; export the bundle again");
    }
    return value;
  }
  float Float(const char* name) const {
    float value = 0;
    CheckRead(name, Api().KernelInfoGetAttribute_float(info_, name, &value));
    return value;
  }
  std::string String(const char* name) const {
    size_t size = 0;
    CheckRead(name, Api().KernelInfoGetAttribute_string(info_, name, nullptr, &size));
    std::string value(size, '\0');
    CheckRead(name, Api().KernelInfoGetAttribute_string(info_, name, value.data(), &size));
    while (!value.empty() && value.back() == '\0') value.pop_back();
    return value;
  }
  size_t InputCount() const {
    size_t count = 0;
    Check(Api().KernelInfo_GetInputCount(info_, &count));
    return count;
  }
  // Whether the node has this optional input or output: one may end before it, or leave its name empty.
  bool HasInput(size_t index) const { return index < InputCount() && HasName(Api().KernelInfo_GetInputName, index); }
  bool HasOutput(size_t index) const {
    size_t count = 0;
    Check(Api().KernelInfo_GetOutputCount(info_, &count));
    return index < count && HasName(Api().KernelInfo_GetOutputName, index);
  }
  // Elements of an input of rank 1; 0 where its type does not tell.
  int64_t InputLength(size_t index) const {
    OrtTypeInfo* type = nullptr;
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    int64_t length = 0;
    size_t rank = 0;
    Check(Api().KernelInfo_GetInputTypeInfo(info_, index, &type));
    OrtStatus* status = Api().CastTypeInfoToTensorInfo(type, &info);
    if (status == nullptr && info != nullptr) status = Api().GetDimensionsCount(info, &rank);
    if (status == nullptr && rank == 1) status = Api().GetDimensions(info, &length, rank);
    Api().ReleaseTypeInfo(type);
    Check(status);
    return std::max<int64_t>(length, 0);
  }
  // Type and shape of an input as far as the graph tells them, without data: -1 for an unknown length, type kAny where nothing is known.
  Tensor InputType(size_t index) const {
    OrtTypeInfo* type = nullptr;
    const OrtTensorTypeAndShapeInfo* info = nullptr;
    Tensor tensor;
    Check(Api().KernelInfo_GetInputTypeInfo(info_, index, &type));
    OrtStatus* status = Api().CastTypeInfoToTensorInfo(type, &info);
    if (status == nullptr && info != nullptr) {
      status = Api().GetTensorElementType(info, &tensor.type);
      if (status == nullptr) status = Api().GetDimensionsCount(info, &tensor.rank);
      tensor.rank = std::min(tensor.rank, Tensor::kMaxRank);
      if (status == nullptr) status = Api().GetDimensions(info, tensor.dims.data(), tensor.rank);
    }
    Api().ReleaseTypeInfo(type);
    Check(status);
    return tensor;
  }
  // The initializer behind an input. It lives as long as the session, and is read where it lies: nothing is copied.
  Tensor Constant(size_t index, const char* name) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(Api().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    if (!is_constant || value == nullptr) {
      throw Error(std::string(op_) + ": input " + name + ": got a computed tensor, expected an initializer");
    }
    return Describe(value);
  }

 private:
  // Names the attribute that could not be read.
  void CheckRead(const char* name, OrtStatus* status) const {
    try {
      Check(status);
    } catch (const Error& error) {
      throw Error(std::string(op_) + ": attribute " + name + ": " + error.what() + "; export the bundle again");
    }
  }
  template <class Function>
  bool HasName(Function name_of, size_t index) const {
    size_t size = 0;  // with the zero behind it
    Check(name_of(info_, index, nullptr, &size));
    return size > 1;
  }

  const char* op_;
  const OrtKernelInfo* info_;
};

// How many threads run operators. ONNX Runtime does not tell, so threads are counted as they come by. Split work by it only
// where the split changes no result.
class ThreadCount {
 public:
  // Called by every thread that runs a task.
  static void Mark() {
    thread_local const bool counted = (++Seen(), true);
    static_cast<void>(counted);
  }
  // At least 2 where there are 2 processors, so that a second thread gets work to be seen at.
  static size_t Estimate() {
    static const size_t processors = std::max<size_t>(1, std::thread::hardware_concurrency());
    return std::min(processors, std::max<size_t>(2, Seen().load(std::memory_order_relaxed)));
  }

 private:
  static std::atomic<size_t>& Seen() {
    static std::atomic<size_t> seen{0};
    return seen;
  }
};

// One run of a node.
class Context {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}

  OrtKernelContext* Raw() const { return context_; }

  size_t InputCount() const {
    size_t count = 0;
    Check(Api().KernelContext_GetInputCount(context_, &count));
    return count;
  }
  // Null data where an optional input is absent.
  Tensor Input(size_t index) const {
    const OrtValue* value = nullptr;
    Check(Api().KernelContext_GetInput(context_, index, &value));
    return Describe(value);
  }
  // Where an input lies, without its shape, whose description costs several times as much.
  const void* InputData(size_t index) const {
    const OrtValue* value = nullptr;
    void* data = nullptr;
    Check(Api().KernelContext_GetInput(context_, index, &value));
    Check(Api().GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return data;
  }
  template <class T>
  T* Output(size_t index, const int64_t* dims, size_t rank) const {
    OrtValue* value = nullptr;
    Check(Api().KernelContext_GetOutput(context_, index, dims, rank, &value));
    void* data = nullptr;
    Check(Api().GetTensorMutableData(value, &data));
    return static_cast<T*>(data);
  }
  template <class T>
  T* Output(size_t index, std::initializer_list<int64_t> dims) const {
    return Output<T>(index, dims.begin(), dims.size());
  }
  // Calls f(0) … f(tasks - 1) on the session's thread pool and waits. Tasks are handed out one at a time; f must not throw.
  template <class F>
  void ParallelFor(size_t tasks, F&& f) const {
    if (tasks <= 1) {
      if (tasks == 1) f(size_t{0});
      return;
    }
    using Function = std::remove_reference_t<F>;
    const auto call = [](void* user, size_t i) {
      ThreadCount::Mark();
      (*static_cast<Function*>(user))(i);
    };
    Check(Api().KernelContext_ParallelFor(context_, call, tasks, tasks, const_cast<void*>(static_cast<const void*>(&f))));
  }

 private:
  OrtKernelContext* context_;
};

// An input that holds a count, int64 [1], or those of all layers, int64 [layers], of which one counts.
class CountInput {
 public:
  static constexpr int64_t kNoLayer = -1;

  CountInput(const Attributes& attributes, const char* op, size_t port, const char* name, int64_t layer = kNoLayer)
      : op_(op), port_(port), name_(name), layer_(layer), known_(attributes.InputLength(port)) {
    if (known_ > 0) ExpectCounts(known_);
  }

  const char* Name() const { return name_; }
  int64_t Read(const Context& context) const { return *Where(context); }
  // Where the count lies, in the provider's memory.
  const int64_t* Where(const Context& context) const {
    if (known_ > 0) return static_cast<const int64_t*>(context.InputData(port_)) + Place();
    const Tensor tensor = context.Input(port_);
    if (layer_ == kNoLayer) {
      Expect(op_, name_, tensor, kInt64, {1});
    } else {
      Expect(op_, name_, tensor, kInt64, {-1});
      ExpectCounts(tensor.dims[0]);
    }
    return tensor.As<int64_t>() + Place();
  }

 private:
  int64_t Place() const { return std::max<int64_t>(layer_, 0); }
  void ExpectCounts(int64_t count) const {
    if (layer_ == kNoLayer ? count == 1 : count > layer_) return;
    throw Error(std::string(op_) + ": input " + name_ + ": got " + std::to_string(count) + " counts, expected " +
                (layer_ == kNoLayer ? "1" : "more than " + std::to_string(layer_) + ", the layer") + "; export the bundle again");
  }

  const char* op_;
  size_t port_;
  const char* name_;
  int64_t layer_;
  int64_t known_;  // elements, where the graph says how many: ONNX Runtime then refuses a run that gives others
};

// Uninitialized memory, 64-byte aligned, that grows and is kept: declare it thread_local.
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(memory_); }

  template <class T>
  T* Get(size_t count) {
    const size_t bytes = count * sizeof(T);
    if (bytes > capacity_) {
      const size_t rounded = (bytes + bytes / 4 + kSlack + 4095) / 4096 * 4096;
      void* fresh = std::aligned_alloc(64, rounded);
      if (fresh == nullptr) throw std::bad_alloc();
      std::free(memory_);
      memory_ = fresh;
      capacity_ = rounded - kSlack;
    }
    return static_cast<T*>(memory_);
  }

 private:
  static constexpr size_t kSlack = 256;  // whole vectors may be read past the end
  void* memory_ = nullptr;
  size_t capacity_ = 0;
};

// Runs f and turns an exception into a status: none may cross into ONNX Runtime.
template <class F>
OrtStatus* Guard(F&& f) {
  try {
    f();
    return nullptr;
  } catch (const std::exception& error) {
    return Api().CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return Api().CreateStatus(ORT_FAIL, "unknown error in a native operator");
  }
}

// The definition of an operator, in a static object: it must outlive every session.
template <class Kernel>
const OrtCustomOp* Define() {
  static const OrtCustomOp definition = [] {
    using Op = const OrtCustomOp*;
    using Characteristic = OrtCustomOpInputOutputCharacteristic;
    OrtCustomOp op{};
    op.version = ORT_API_VERSION;
    op.GetName = [](Op) { return Kernel::kName; };
    op.GetExecutionProviderType = [](Op) -> const char* { return SOL_PROVIDER; };
    op.GetInputTypeCount = [](Op) { return Kernel::kInputs.size(); };
    op.GetInputType = [](Op, size_t i) { return Kernel::kInputs[i].type; };
    op.GetInputCharacteristic = [](Op, size_t i) -> Characteristic {
      return Kernel::kInputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    op.GetInputMemoryType = [](Op, size_t) { return OrtMemTypeDefault; };
    op.GetOutputTypeCount = [](Op) { return Kernel::kOutputs.size(); };
    op.GetOutputType = [](Op, size_t i) { return Kernel::kOutputs[i].type; };
    op.GetOutputCharacteristic = [](Op, size_t i) -> Characteristic {
      return Kernel::kOutputs[i].optional ? INPUT_OUTPUT_OPTIONAL : INPUT_OUTPUT_REQUIRED;
    };
    op.GetVariadicInputMinArity = [](Op) { return 1; };
    op.GetVariadicInputHomogeneity = [](Op) { return 1; };
    op.GetVariadicOutputMinArity = [](Op) { return 1; };
    op.GetVariadicOutputHomogeneity = [](Op) { return 1; };
    op.GetStartVersion = [](Op) { return 1; };
    op.GetEndVersion = [](Op) { return 1; };
    op.CreateKernelV2 = [](Op, const OrtApi*, const OrtKernelInfo* info, void** kernel) {
      return Guard([&] { *kernel = new Kernel(Attributes(Kernel::kName, info)); });
    };
    op.KernelComputeV2 = [](void* kernel, OrtKernelContext* raw) {
      return Guard([&] {
        Context context(raw);
        static_cast<const Kernel*>(kernel)->Compute(context);
      });
    };
    op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
    return op;
  }();
  return &definition;
}

}  // namespace sol
