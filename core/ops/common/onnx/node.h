// A node of a graph: its attributes and constants, which its kernel is made of, and one run of it with tensors and threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <string>
#include <thread>
#include <type_traits>

#include "common/onnx/tensor.h"

namespace sol {

// Attributes and constant inputs of a node, read while its kernel is made. Every kernel's constructor reads many: inlined, that would take 20 KB.
class Attributes {
 public:
  Attributes(const char* op, const OrtKernelInfo* info) : op_(op), info_(info) {}

  [[gnu::noinline]] int64_t Int(const char* name) const {
    int64_t value = 0;
    CheckRead(name, Api().KernelInfoGetAttribute_int64(info_, name, &value));
    return value;
  }
  [[gnu::noinline]] int64_t Int(const char* name, int64_t least, int64_t most) const {
    const int64_t value = Int(name);
    if (value < least || value > most) {
      throw Error(std::string(op_) + ": attribute " + name + ": got " + std::to_string(value) + ", expected " +
                  std::to_string(least) + " to " + std::to_string(most) + "; export the bundle again");
    }
    return value;
  }
  // `otherwise` where the node does not have it.
  int64_t IntOr(const char* name, int64_t otherwise) const { return Has(name) ? Int(name) : otherwise; }
  [[gnu::noinline]] float Float(const char* name) const {
    float value = 0;
    CheckRead(name, Api().KernelInfoGetAttribute_float(info_, name, &value));
    return value;
  }
  // `otherwise` where the node does not have it.
  float FloatOr(const char* name, float otherwise) const { return Has(name) ? Float(name) : otherwise; }
  std::string StringOr(const char* name, const char* otherwise) const { return Has(name) ? String(name) : otherwise; }
  [[gnu::noinline]] std::string String(const char* name) const {
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
  // True if the node has this optional input or output. A node may end before it, or leave its name empty.
  bool HasInput(size_t index) const { return index < InputCount() && HasName(Api().KernelInfo_GetInputName, index); }
  bool HasOutput(size_t index) const {
    size_t count = 0;
    Check(Api().KernelInfo_GetOutputCount(info_, &count));
    return index < count && HasName(Api().KernelInfo_GetOutputName, index);
  }
  // Elements of an input of rank 1; 0 where its type does not say.
  [[gnu::noinline]] int64_t InputLength(size_t index) const {
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
  // Type and shape of an input as far as the graph gives them, without data: -1 for an unknown length, type kAny where nothing is known.
  [[gnu::noinline]] Tensor InputType(size_t index) const {
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
  // True if an input is an initializer. Its type then gives its shape; computed inputs may have another shape than the graph declares.
  bool IsConstant(size_t index) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(Api().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    return is_constant != 0;
  }
  // The initializer behind an input. It lives as long as the session, and is read where it lies: nothing is copied.
  [[gnu::noinline]] Tensor Constant(size_t index, const char* name) const {
    int is_constant = 0;
    const OrtValue* value = nullptr;
    Check(Api().KernelInfoGetConstantInput_tensor(info_, index, &is_constant, &value));
    if (!is_constant || value == nullptr) {
      throw Error(std::string(op_) + ": input " + name + ": got a computed tensor, expected an initializer");
    }
    try {
      return Describe(value);
    } catch (const Error& error) {
      throw Error(std::string(op_) + ": input " + name + ": " + error.what() + "; export the bundle again");
    }
  }

 private:
  // True if the node has the attribute as a number or a text. ONNX Runtime's error is the same where it is missing and where it has another type than
  // is asked for, so all three types are asked for: a window that is stored as a float must not pass for none.
  [[gnu::noinline]] bool Has(const char* name) const {
    int64_t number = 0;
    float real = 0;
    size_t size = 0;
    bool has = false;
    for (OrtStatus* status : {Api().KernelInfoGetAttribute_int64(info_, name, &number), Api().KernelInfoGetAttribute_float(info_, name, &real),
                              Api().KernelInfoGetAttribute_string(info_, name, nullptr, &size)}) {
      has = has || status == nullptr;
      if (status != nullptr) Api().ReleaseStatus(status);
    }
    return has;
  }
  // Names the attribute that could not be read.
  [[gnu::noinline]] void CheckRead(const char* name, OrtStatus* status) const {
    try {
      Check(status);
    } catch (const Error& error) {
      throw Error(std::string(op_) + ": attribute " + name + ": " + error.what() + "; export the bundle again");
    }
  }
  template <class Function>
  bool HasName(Function name_of, size_t index) const {
    size_t size = 0;  // with the zero after it
    Check(name_of(info_, index, nullptr, &size));
    return size > 1;
  }

  const char* op_;
  const OrtKernelInfo* info_;
};

// Number of threads that run operators. ONNX Runtime does not report it, so threads are counted as they come by. Split work by it only where the
// split changes no result.
class ThreadCount {
 public:
  // Counts this thread until it ends. Called by every thread that runs a task but the caller of the tasks, who may be another one each run.
  static void Mark() {
    struct Counted {
      Counted() { Others().fetch_add(1, std::memory_order_relaxed); }
      ~Counted() { Others().fetch_sub(1, std::memory_order_relaxed); }
    };
    thread_local const Counted counted;
    static_cast<void>(counted);
  }
  // A caller and the threads that are counted.
  static size_t Seen() { return 1 + Others().load(std::memory_order_relaxed); }
  // At least 2 where there are 2 processors, so that a second thread gets work to be seen at.
  static size_t Estimate() {
    static const size_t processors = std::max<size_t>(1, std::thread::hardware_concurrency());
    return std::min(processors, std::max<size_t>(2, Seen()));
  }

 private:
  static std::atomic<size_t>& Others() {
    static std::atomic<size_t> others{0};  // nothing to destroy: threads may end after everything else
    return others;
  }
};

// One run of a node.
class Context {
 public:
  explicit Context(OrtKernelContext* context) : context_(context) {}

  OrtKernelContext* Raw() const { return context_; }

  // Null data where an optional input is absent.
  Tensor Input(size_t index) const {
    const OrtValue* value = nullptr;
    Check(Api().KernelContext_GetInput(context_, index, &value));
    return Describe(value);
  }
  // Address of an input, without its shape, whose description takes some 70 ns more. For inputs whose shape is known to be right.
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
  // Calls f(0) … f(tasks - 1) on the session's thread pool and waits. Tasks are handed out one at a time. f may throw std::bad_alloc and
  // nothing else: it is thrown here once all tasks have ended, for an exception that leaves a thread of the pool ends the process.
  template <class F>
  void ParallelFor(size_t tasks, F&& f) const {
    if (tasks <= 1) {
      if (tasks == 1) f(size_t{0});
      return;
    }
    using Function = std::remove_reference_t<F>;
    Call call{[](void* f, size_t i) { (*static_cast<Function*>(f))(i); }, const_cast<void*>(static_cast<const void*>(&f))};
    Check(Api().KernelContext_ParallelFor(context_, RunTask, tasks, tasks, &call));
    if (call.out_of_memory) throw std::bad_alloc();
  }

 private:
  struct Call {
    void (*run)(void* f, size_t task);
    void* f;
    std::thread::id caller = std::this_thread::get_id();
    std::atomic<bool> out_of_memory{false};
  };
  // No template: a handler in every kernel would take 16 KB.
  static void RunTask(void* user, size_t task) {
    Call& call = *static_cast<Call*>(user);
    if (std::this_thread::get_id() != call.caller) ThreadCount::Mark();
    try {
      call.run(call.f, task);
    } catch (const std::bad_alloc&) {
      call.out_of_memory.store(true, std::memory_order_relaxed);
    }
  }

  OrtKernelContext* context_;
};

// An input that holds a count, int64 [1], or those of all layers, int64 [layers], of which one counts.
class CountInput {
 public:
  static constexpr int64_t kNoLayer = -1;

  CountInput(const Attributes& attributes, const char* op, size_t port, const char* name, int64_t layer = kNoLayer)
      : op_(op), port_(port), name_(name), layer_(layer) {
    const int64_t declared = attributes.InputLength(port);
    if (declared > 0) ExpectCounts(declared);
  }

  const char* Name() const { return name_; }
  int64_t Read(const Context& context) const { return *Where(context); }
  // Address of the count, in the provider's memory. Every run looks how many there are: ONNX Runtime holds inputs of a graph to the lengths that it
  // declares, but not what nodes compute.
  const int64_t* Where(const Context& context) const {
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
};

}  // namespace sol
