// Makes an operator of ONNX Runtime out of a class:
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

#include <array>
#include <cstddef>
#include <exception>
#include <new>
#include <string>

#include "common/onnx/node.h"

// The execution provider that a library's operators are for.
#ifndef SOL_PROVIDER
#define SOL_PROVIDER "CPUExecutionProvider"
#endif

namespace sol {

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

// Runs f for the operator `op` and turns an exception into a status: none may cross into ONNX Runtime.
template <class F>
OrtStatus* Guard(const char* op, F&& f) {
  try {
    f();
    return nullptr;
  } catch (const std::bad_alloc&) {
    return Api().CreateStatus(ORT_FAIL, (std::string(op) + ": out of memory; use a shorter prompt or context").c_str());
  } catch (const std::exception& error) {
    return Api().CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return Api().CreateStatus(ORT_FAIL, (std::string(op) + ": unknown error").c_str());
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
      return Guard(Kernel::kName, [&] { *kernel = new Kernel(Attributes(Kernel::kName, info)); });
    };
    op.KernelComputeV2 = [](void* kernel, OrtKernelContext* raw) {
      return Guard(Kernel::kName, [&] {
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
