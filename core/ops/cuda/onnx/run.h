// One run of a node on the device: its stream, memory of the provider's allocator, and tensors that lie there.
#pragma once

#include <cstring>
#include <string>

#include "common/onnx/node.h"
#include "cuda/device/scratch.h"
#include "cuda/matmul/matmul.h"

namespace sol::cuda {

class Run {
 public:
  Run(const Context& context, const char* op) : context_(context), op_(op) {
#ifndef SOL_CUDA_EMULATION
    Check(Api().KernelContext_GetGPUComputeStream(context.Raw(), &stream_));
#endif
    const OrtValue* first = nullptr;
    Check(Api().KernelContext_GetInput(context.Raw(), 0, &first));
    Check(Api().GetTensorMemoryInfo(first, &memory_));
#ifndef SOL_CUDA_EMULATION
    OrtMemoryInfoDeviceType where;
    Api().MemoryInfoGetDeviceType(memory_, &where);
    if (where != OrtMemoryInfoDeviceType_GPU) throw Error(std::string(op) + ": input 0: got host memory, expected the CUDA device's");
#endif
  }

  Stream Queue() const { return stream_; }
  const sol::Context& Inputs() const { return context_; }

  // Memory for this run. What comes after on the same stream may have it, so it is given back as soon as all is launched. The API that
  // allocates for a stream, GetScratchBuffer, ends the process where memory is short.
  class Memory {
   public:
    Memory(const Run& run, size_t bytes) {
      if (bytes == 0) return;
      Check(Api().KernelContext_GetAllocator(run.context_.Raw(), run.memory_, &allocator_));
      OrtStatus* status = Api().AllocatorAlloc(allocator_, bytes, &data_);
      if (status != nullptr || data_ == nullptr) {
        if (status != nullptr) Api().ReleaseStatus(status);
        Api().ReleaseAllocator(allocator_);
        throw Error(std::string(run.op_) + ": out of device memory: " + std::to_string(bytes) +
                    " bytes for one call; use a shorter context or --provider cpu");
      }
#ifdef SOL_CUDA_EMULATION
      std::memset(data_, 0xFF, bytes);  // not a number: what is read before it is written shows
#endif
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
      if (allocator_ == nullptr) return;
      if (OrtStatus* status = Api().AllocatorFree(allocator_, data_)) Api().ReleaseStatus(status);
      Api().ReleaseAllocator(allocator_);
    }
    char* Data() const { return static_cast<char*>(data_); }

   private:
    OrtAllocator* allocator_ = nullptr;
    void* data_ = nullptr;
  };

  // Calls place(scratch) twice, to learn the size and for good, then launch().
  template <class Place, class Launches>
  void WithScratch(const Place& place, const Launches& launch) const {
    Scratch sizes;
    place(sizes);
    const Memory memory(*this, sizes.Used());
    Scratch scratch(memory.Data());
    place(scratch);
    launch();
  }

 private:
  const sol::Context& context_;
  const char* op_;
  void* stream_ = nullptr;
  const OrtMemoryInfo* memory_ = nullptr;
};

}  // namespace sol::cuda
