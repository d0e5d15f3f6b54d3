// Stands in for ONNX Runtime: the part of its C API that the CPU operators call, so that they run in a program whose every line a sanitizer
// sees. Each tensor has an allocation of its own, of exactly its size. It refuses what ONNX Runtime refuses before it calls an operator.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <variant>
#include <vector>

#include "common/onnx/tensor.h"

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

// The types that the C API leaves open.
struct OrtStatus {
  std::string message;
};
struct OrtTensorTypeAndShapeInfo {
  sol::Type type = sol::kAny;
  std::vector<int64_t> dims;
};
struct OrtTypeInfo {
  OrtTensorTypeAndShapeInfo tensor;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> operators;
};

namespace stand_in {

constexpr int64_t kMostElements = int64_t{1} << 22;  // of a tensor; for more there is "no memory"

inline int64_t BitsOf(sol::Type type) {
  switch (type) {
    case sol::kFloat: return 32;
    case sol::kFloat16: return 16;
    case sol::kInt64: return 64;
    case sol::kUInt4: return 4;
    default: return 8;
  }
}

// Elements, or -1 where they are too many.
inline int64_t ElementsOf(const std::vector<int64_t>& dims) {
  if (std::find(dims.begin(), dims.end(), 0) != dims.end()) return 0;
  int64_t count = 1;
  for (const int64_t length : dims) {
    if (length < 0 || length > kMostElements / count) return -1;
    count *= length;
  }
  return count;
}

inline size_t BytesOf(sol::Type type, int64_t elements) { return static_cast<size_t>((elements * BitsOf(type) + 7) / 8); }

}  // namespace stand_in

struct OrtValue {
  OrtTensorTypeAndShapeInfo info;
  std::unique_ptr<char[]> data;  // null where there is no element

  // The tensor's size must be in bounds.
  OrtValue(sol::Type type, std::vector<int64_t> dims) : info{type, std::move(dims)} {
    const size_t bytes = Bytes();
    if (bytes > 0) data.reset(new char[bytes]);
  }
  size_t Bytes() const { return stand_in::BytesOf(info.type, stand_in::ElementsOf(info.dims)); }
};

struct OrtKernelInfo {
  struct Attribute {
    std::string name;
    std::variant<int64_t, float, std::string> value;
  };
  struct Input {
    std::string name;                    // empty where it is left out
    OrtTensorTypeAndShapeInfo declared;  // what the graph says; -1 for an unknown length
    const OrtValue* value = nullptr;
    bool constant = false;
  };
  struct Output {
    std::string name;
    OrtValue* bound = nullptr;  // where the host has bound one
  };
  std::string op;
  std::vector<Attribute> attributes;
  std::vector<Input> inputs;
  std::vector<Output> outputs;

  Attribute* Find(const char* name) {
    for (Attribute& attribute : attributes) {
      if (attribute.name == name) return &attribute;
    }
    return nullptr;
  }
};

struct OrtKernelContext {
  const OrtKernelInfo* node;
  std::vector<std::unique_ptr<OrtValue>> outputs;  // made by this run
  size_t threads;
};

namespace stand_in {

inline OrtStatus* Fail(const std::string& message) { return new OrtStatus{message}; }

template <class T>
OrtStatus* ReadAttribute(const OrtKernelInfo* info, const char* name, T& value) {
  for (const auto& attribute : info->attributes) {
    if (attribute.name != name) continue;
    const T* found = std::get_if<T>(&attribute.value);
    if (found == nullptr) return Fail("another type");
    value = *found;
    return nullptr;
  }
  return Fail("no attribute of this name");
}

inline OrtStatus* CopyName(const std::string& name, char* to, size_t* size) {
  const size_t needed = name.size() + 1;
  if (to != nullptr && *size < needed) return Fail("too small");
  if (to != nullptr) std::memcpy(to, name.c_str(), needed);
  *size = needed;
  return nullptr;
}

// Tasks in their order on one thread, or handed out to several, which begin together: else the first one has done all before others start.
inline void RunTasks(void (*run)(void*, size_t), size_t tasks, size_t threads, void* user) {
  if (threads <= 1) {
    for (size_t i = 0; i < tasks; ++i) run(user, i);
    return;
  }
  const size_t count = std::min(threads, tasks);
  std::atomic<size_t> next{0}, ready{0};
  const auto work = [&] {
    for (++ready; ready.load(std::memory_order_relaxed) < count;) std::this_thread::yield();
    for (size_t i = next++; i < tasks; i = next++) run(user, i);
  };
  std::vector<std::thread> others;
  for (size_t i = 1; i < count; ++i) others.emplace_back(work);
  work();
  for (std::thread& thread : others) thread.join();
}

inline OrtStatus* MakeOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, OrtValue** out);

inline const OrtApi& Api() {
  static const OrtApi api = [] {
    OrtApi api{};
    api.CreateStatus = [](OrtErrorCode, const char* text) noexcept -> OrtStatus* { return Fail(text); };
    api.GetErrorMessage = [](const OrtStatus* status) noexcept { return status->message.c_str(); };
    api.ReleaseStatus = [](OrtStatus* status) { delete status; };
    api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) noexcept -> OrtStatus* {
      *out = new OrtCustomOpDomain;
      return nullptr;
    };
    api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) noexcept -> OrtStatus* {
      domain->operators.push_back(op);
      return nullptr;
    };
    api.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) noexcept -> OrtStatus* {
      *reinterpret_cast<OrtCustomOpDomain**>(options) = domain;
      return nullptr;
    };
    api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) noexcept -> OrtStatus* {
      return ReadAttribute(info, name, *out);
    };
    api.KernelInfoGetAttribute_float = [](const OrtKernelInfo* info, const char* name, float* out) noexcept -> OrtStatus* {
      return ReadAttribute(info, name, *out);
    };
    api.KernelInfoGetAttribute_string = [](const OrtKernelInfo* info, const char* name, char* out, size_t* size) noexcept -> OrtStatus* {
      std::string value;
      OrtStatus* status = ReadAttribute(info, name, value);
      return status != nullptr ? status : CopyName(value, out, size);
    };
    api.KernelInfo_GetInputCount = [](const OrtKernelInfo* info, size_t* out) noexcept -> OrtStatus* {
      *out = info->inputs.size();
      return nullptr;
    };
    api.KernelInfo_GetOutputCount = [](const OrtKernelInfo* info, size_t* out) noexcept -> OrtStatus* {
      *out = info->outputs.size();
      return nullptr;
    };
    api.KernelInfo_GetInputName = [](const OrtKernelInfo* info, size_t i, char* out, size_t* size) noexcept -> OrtStatus* {
      return i < info->inputs.size() ? CopyName(info->inputs[i].name, out, size) : Fail("no such input");
    };
    api.KernelInfo_GetOutputName = [](const OrtKernelInfo* info, size_t i, char* out, size_t* size) noexcept -> OrtStatus* {
      return i < info->outputs.size() ? CopyName(info->outputs[i].name, out, size) : Fail("no such output");
    };
    api.KernelInfo_GetInputTypeInfo = [](const OrtKernelInfo* info, size_t i, OrtTypeInfo** out) noexcept -> OrtStatus* {
      if (i >= info->inputs.size() || info->inputs[i].name.empty()) return Fail("no such input");
      *out = new OrtTypeInfo{info->inputs[i].declared};
      return nullptr;
    };
    api.ReleaseTypeInfo = [](OrtTypeInfo* type) { delete type; };
    api.CastTypeInfoToTensorInfo = [](const OrtTypeInfo* type, const OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
      *out = &type->tensor;
      return nullptr;
    };
    api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t i, int* is_constant, const OrtValue** out) noexcept -> OrtStatus* {
      *is_constant = i < info->inputs.size() && info->inputs[i].constant && info->inputs[i].value != nullptr;
      *out = *is_constant ? info->inputs[i].value : nullptr;
      return nullptr;
    };
    api.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) noexcept -> OrtStatus* {
      *out = new OrtTensorTypeAndShapeInfo(value->info);
      return nullptr;
    };
    api.ReleaseTensorTypeAndShapeInfo = [](OrtTensorTypeAndShapeInfo* info) { delete info; };
    api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out) noexcept -> OrtStatus* {
      *out = info->type;
      return nullptr;
    };
    api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) noexcept -> OrtStatus* {
      *out = info->dims.size();
      return nullptr;
    };
    api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t count) noexcept -> OrtStatus* {
      std::copy_n(info->dims.begin(), std::min(count, info->dims.size()), out);
      return nullptr;
    };
    api.GetTensorMutableData = [](OrtValue* value, void** out) noexcept -> OrtStatus* {
      *out = value->data.get();
      return nullptr;
    };
    api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t i, const OrtValue** out) noexcept -> OrtStatus* {
      *out = i < context->node->inputs.size() ? context->node->inputs[i].value : nullptr;
      return nullptr;
    };
    api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t i, const int64_t* dims, size_t rank, OrtValue** out) noexcept -> OrtStatus* {
      return MakeOutput(context, i, dims, rank, out);
    };
    api.KernelContext_ParallelFor = [](const OrtKernelContext* context, void (*run)(void*, size_t), size_t tasks, size_t,
                                       void* user) noexcept -> OrtStatus* {
      RunTasks(run, tasks, context->threads, user);
      return nullptr;
    };
    return api;
  }();
  return api;
}

// The operators that the library registers.
inline const std::vector<const OrtCustomOp*>& Operators() {
  static const OrtCustomOpDomain* const domain = [] {
    const OrtApiBase base{[](uint32_t) noexcept -> const OrtApi* { return &Api(); }, []() noexcept -> const char* { return "stand-in"; }};
    OrtCustomOpDomain* made = nullptr;
    if (OrtStatus* status = RegisterCustomOps(reinterpret_cast<OrtSessionOptions*>(&made), &base)) {
      std::fprintf(stderr, "%s\n", status->message.c_str());
      std::abort();
    }
    return made;
  }();
  return domain->operators;
}

// The definition that takes the node's types, as ONNX Runtime picks it; null where none does.
inline const OrtCustomOp* FindOperator(const OrtKernelInfo& node) {
  for (const OrtCustomOp* op : Operators()) {
    const size_t most_inputs = op->GetInputTypeCount(op), most_outputs = op->GetOutputTypeCount(op);
    bool fits = node.op == op->GetName(op) && node.inputs.size() <= most_inputs && node.outputs.size() <= most_outputs;
    for (size_t i = 0; fits && i < most_inputs; ++i) {
      const bool there = i < node.inputs.size() && !node.inputs[i].name.empty();
      const sol::Type wanted = op->GetInputType(op, i);
      fits = there ? wanted == sol::kAny || wanted == node.inputs[i].declared.type : op->GetInputCharacteristic(op, i) == INPUT_OUTPUT_OPTIONAL;
    }
    for (size_t i = 0; fits && i < most_outputs; ++i) {
      fits = (i < node.outputs.size() && !node.outputs[i].name.empty()) || op->GetOutputCharacteristic(op, i) == INPUT_OUTPUT_OPTIONAL;
    }
    if (fits) return op;
  }
  return nullptr;
}

inline OrtStatus* MakeOutput(OrtKernelContext* context, size_t index, const int64_t* dims, size_t rank, OrtValue** out) {
  *out = nullptr;
  if (index >= context->node->outputs.size() || context->node->outputs[index].name.empty()) return nullptr;
  const std::vector<int64_t> shape(dims, dims + rank);
  if (OrtValue* bound = context->node->outputs[index].bound) {
    if (bound->info.dims != shape) return Fail("output: got another shape than the bound one");
    *out = bound;
    return nullptr;
  }
  if (ElementsOf(shape) < 0) return Fail("output: out of memory");
  const OrtCustomOp* op = FindOperator(*context->node);
  context->outputs[index] = std::make_unique<OrtValue>(op->GetOutputType(op, index), shape);
  *out = context->outputs[index].get();
  return nullptr;
}

struct Result {
  enum Kind { kNoOperator, kRefusedAtLoad, kRefusedAtRun, kRan } kind;
  std::string message;
  std::vector<std::unique_ptr<OrtValue>> outputs;
};

inline std::string Take(OrtStatus* status) {
  std::string message = status->message;
  delete status;
  return message;
}

// Makes the node's kernel, runs it once and destroys it.
inline Result Run(const OrtKernelInfo& node, size_t threads) {
  const OrtCustomOp* op = FindOperator(node);
  if (op == nullptr) return {Result::kNoOperator, "", {}};
  void* kernel = nullptr;
  if (OrtStatus* status = op->CreateKernelV2(op, &Api(), &node, &kernel)) return {Result::kRefusedAtLoad, Take(status), {}};
  OrtKernelContext context{&node, {}, threads};
  context.outputs.resize(node.outputs.size());
  OrtStatus* status = op->KernelComputeV2(kernel, &context);
  op->KernelDestroy(kernel);
  if (status != nullptr) return {Result::kRefusedAtRun, Take(status), {}};
  return {Result::kRan, "", std::move(context.outputs)};
}

}  // namespace stand_in
