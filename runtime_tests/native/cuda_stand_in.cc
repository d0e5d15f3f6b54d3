// CUDA's libraries in name, for tests of the host side: ONNX Runtime's CUDA provider runs on them where there is no GPU.
//
// Device memory is the host's, zeroed; kernels and cuBLAS compute nothing. Memory, copies, waits, streams, captures and a GPU that is lost are
// modelled and counted. One file serves under all of the libraries' names, so that they share one state. It has what the provider, its operators and
// sol_rt import, and nothing else.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <string>

#if CUDART_VERSION < 13000
#error "the provider is built for CUDA 13, whose structures differ from those of older headers"
#endif

namespace {
constexpr cudaError_t kGone = cudaErrorIllegalAddress;  // an error that stays
constexpr size_t kPage = 4096;

std::recursive_mutex mutex;
std::map<char*, size_t> device_blocks, pinned_blocks;
std::set<cudaStream_t> capturing;
size_t used = 0, most = 0, limit = size_t{8} << 30;
int64_t calls_left = -1;  // until the GPU is lost; negative: it stays
std::map<std::string, int64_t> counts;
std::string illegal;  // the first call in a capture that has no place there

void Count(const char* what) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  ++counts[what];
}

// True if the GPU is lost at this call or was before.
bool Gone() {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (calls_left > 0) --calls_left;
  return calls_left == 0;
}

// Result of a call that waits, allocates or frees. A capture of the mode that ONNX Runtime asks for refuses it, from whatever thread.
cudaError_t Outside(const char* name) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (Gone()) return kGone;
  if (capturing.empty()) return cudaSuccess;
  if (illegal.empty()) illegal = name;
  return cudaErrorStreamCaptureUnsupported;
}

bool Captured(cudaStream_t stream) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  return capturing.count(stream) != 0;
}

bool Lies(const std::map<char*, size_t>& blocks, const void* address) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  const char* at = static_cast<const char*>(address);
  auto next = blocks.upper_bound(const_cast<char*>(at));
  if (next == blocks.begin()) return false;
  --next;
  return at < next->first + next->second;
}

char* Zeroed(size_t bytes) {
  const size_t rounded = (bytes + kPage - 1) / kPage * kPage + kPage;
  return static_cast<char*>(std::memset(std::aligned_alloc(kPage, rounded), 0, rounded));
}

// A handle of which nothing is read. None is given back, so that none comes twice.
template <class T>
cudaError_t New(T* handle) {
  if (Gone()) return kGone;
  *handle = reinterpret_cast<T>(std::malloc(1));
  return cudaSuccess;
}

cudaError_t Alive() { return Gone() ? kGone : cudaSuccess; }

cudaError_t Copy(void* to, const void* from, size_t bytes, cudaStream_t stream) {
  const bool to_device = Lies(device_blocks, to), from_device = Lies(device_blocks, from);
  if (Captured(stream)) {
    // CUDA takes it, and every replay would use the main memory that was bound then
    if ((!to_device || !from_device) && illegal.empty()) illegal = "a copy of main memory";
    return cudaSuccess;
  }
  Count(to_device ? from_device ? "copies there" : "copies to it" : "copies back");
  std::memcpy(to, from, bytes);
  return cudaSuccess;
}

cudaError_t Launch(cudaStream_t stream) {
  if (Gone()) return kGone;
  Count(Captured(stream) ? "captured kernels" : "kernels");
  return cudaSuccess;
}
}  // namespace

extern "C" {
// Interface of the tests.
size_t used_bytes() { return used; }
size_t most_used_bytes() { return most; }
void set_limit(size_t bytes) { limit = bytes; }
void lose_after(int64_t calls) { calls_left = calls + 1; }
int64_t counted(const char* what) { return counts[what]; }
const char* illegal_in_capture() { return illegal.c_str(); }
void forget_counts() {
  counts.clear();
  most = used;
}

// Memory.
cudaError_t cudaMalloc(void** address, size_t bytes) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const cudaError_t error = Outside("cudaMalloc")) return error;
  *address = nullptr;
  if (used + bytes > limit) return cudaErrorMemoryAllocation;
  char* block = Zeroed(bytes);
  *address = block;
  device_blocks[block] = bytes;
  used += bytes;
  most = most > used ? most : used;
  return cudaSuccess;
}
cudaError_t cudaFree(void* address) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (address == nullptr) return cudaSuccess;
  if (const cudaError_t error = Outside("cudaFree")) return error;
  const auto block = device_blocks.find(static_cast<char*>(address));
  if (block == device_blocks.end()) return cudaErrorInvalidValue;
  used -= block->second;
  std::free(address);
  device_blocks.erase(block);
  return cudaSuccess;
}
cudaError_t cudaFreeAsync(void* address, cudaStream_t) { return cudaFree(address); }
cudaError_t cudaMallocFromPoolAsync(void** address, size_t bytes, cudaMemPool_t, cudaStream_t) { return cudaMalloc(address, bytes); }
cudaError_t cudaHostAlloc(void** address, size_t bytes, unsigned) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const cudaError_t error = Outside("cudaHostAlloc")) return error;
  char* block = Zeroed(bytes);
  *address = block;
  pinned_blocks[block] = bytes;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** address, size_t bytes) { return cudaHostAlloc(address, bytes, 0); }
cudaError_t cudaFreeHost(void* address) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (const cudaError_t error = Outside("cudaFreeHost")) return error;
  if (pinned_blocks.erase(static_cast<char*>(address)) == 0) return cudaErrorInvalidValue;
  std::free(address);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free_bytes, size_t* total) {
  *total = limit;
  *free_bytes = limit - used;
  return Alive();
}
cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  *attributes = {};
  attributes->type = Lies(device_blocks, address)   ? cudaMemoryTypeDevice
                     : Lies(pinned_blocks, address) ? cudaMemoryTypeHost
                                                    : cudaMemoryTypeUnregistered;
  attributes->devicePointer = attributes->hostPointer = const_cast<void*>(address);
  return cudaSuccess;
}

// Copies. One that is captured happens at no launch, as kernels compute nothing.
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  if (const cudaError_t error = Outside("cudaMemcpy")) return error;
  return Copy(to, from, bytes, nullptr);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  if (Gone()) return kGone;
  return Copy(to, from, bytes, stream);
}
cudaError_t cudaMemset(void* to, int value, size_t bytes) {
  if (const cudaError_t error = Outside("cudaMemset")) return error;
  std::memset(to, value, bytes);
  return cudaSuccess;
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  if (Gone()) return kGone;
  if (!Captured(stream)) std::memset(to, value, bytes);
  return cudaSuccess;
}

// Streams, events and captures.
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return New(stream); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return New(stream); }
cudaError_t cudaStreamDestroy(cudaStream_t) { return Alive(); }
cudaError_t cudaStreamSynchronize(cudaStream_t) {
  Count("waits");
  return Outside("cudaStreamSynchronize");
}
cudaError_t cudaDeviceSynchronize() {
  Count("waits");
  return Outside("cudaDeviceSynchronize");
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return New(event); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) { return New(event); }
cudaError_t cudaEventDestroy(cudaEvent_t) { return Alive(); }
cudaError_t cudaEventRecord(cudaEvent_t, cudaStream_t) { return Alive(); }
cudaError_t cudaEventSynchronize(cudaEvent_t) {
  Count("waits");
  return Outside("cudaEventSynchronize");
}
cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) { return Alive(); }
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  if (Gone()) return kGone;
  if (!Captured(stream)) function(data);
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (Gone()) return kGone;
  capturing.insert(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const std::lock_guard<std::recursive_mutex> lock(mutex);
  if (capturing.erase(stream) == 0) return cudaErrorIllegalState;
  Count("captures");
  return New(graph);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = Captured(stream) ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* graph, cudaGraph_t, unsigned long long) { return New(graph); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t, cudaStream_t) {
  if (Gone()) return kGone;
  Count("graphs");
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t) { return Alive(); }
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return Alive(); }

// Launches, as nvcc writes them and as libraries do.
cudaError_t cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) { return Launch(stream); }
cudaError_t __cudaLaunchKernel(cudaKernel_t, dim3, dim3, void**, size_t, cudaStream_t stream) { return Launch(stream); }
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t* launch, const void*, void**) { return Launch(launch->stream); }
cudaError_t cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t stream) { return Launch(stream); }
struct Configuration {
  dim3 grid, block;
  size_t shared;
  void* stream;
};
static thread_local Configuration configuration;
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
  configuration = {grid, block, shared, stream};
  return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
  *grid = configuration.grid;
  *block = configuration.block;
  *shared = configuration.shared;
  *static_cast<void**>(stream) = configuration.stream;
  return cudaSuccess;
}
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = reinterpret_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
void** __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
cudaError_t cudaLibraryLoadData(cudaLibrary_t* library, const void*, cudaJitOption*, void**, unsigned, cudaLibraryOption*, void**, unsigned) {
  return New(library);
}
cudaError_t cudaLibraryGetKernel(cudaKernel_t* kernel, cudaLibrary_t, const char*) { return New(kernel); }
cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps*) { return New(pool); }

// Properties: an H100's.
cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) { return device != 0 ? cudaErrorInvalidDevice : Alive(); }
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  *version = CUDART_VERSION;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) { return cudaDriverGetVersion(version); }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = {};
  std::strcpy(properties->name, "Stand-in");
  properties->totalGlobalMem = limit;
  properties->major = 9;
  properties->multiProcessorCount = 132;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = properties->maxThreadsDim[0] = properties->maxThreadsDim[1] = 1024;
  properties->maxThreadsDim[2] = 64;
  properties->maxGridSize[0] = INT32_MAX;
  properties->maxGridSize[1] = properties->maxGridSize[2] = 65535;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 65536;
  properties->sharedMemPerBlock = 49152;
  properties->sharedMemPerBlockOptin = 232448;
  properties->sharedMemPerMultiprocessor = 233472;
  properties->l2CacheSize = 50 << 20;
  return Alive();
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  static const std::map<int, int> values = {
      {cudaDevAttrComputeCapabilityMajor, 9},
      {cudaDevAttrComputeCapabilityMinor, 0},
      {cudaDevAttrMultiProcessorCount, 132},
      {cudaDevAttrWarpSize, 32},
      {cudaDevAttrMaxThreadsPerBlock, 1024},
      {cudaDevAttrMaxSharedMemoryPerBlock, 49152},
      {cudaDevAttrMaxSharedMemoryPerBlockOptin, 232448},
      {cudaDevAttrMaxSharedMemoryPerMultiprocessor, 233472},
  };
  const auto found = values.find(attribute);
  *value = found == values.end() ? 1 : found->second;
  return cudaSuccess;
}
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
  *attributes = {};
  attributes->maxThreadsPerBlock = 1024;
  attributes->numRegs = 64;
  attributes->binaryVersion = attributes->ptxVersion = 90;
  return cudaSuccess;
}
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
  *blocks = 2;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char*, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* result) {
  *function = nullptr;
  if (result != nullptr) *result = cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : error == kGone ? "the GPU is lost" : "another error";
}
const char* cudaGetErrorName(cudaError_t error) { return cudaGetErrorString(error); }
cudaError_t cudaGetLastError() { return calls_left == 0 ? kGone : cudaSuccess; }
cudaError_t cudaPeekAtLastError() { return cudaGetLastError(); }

// The driver, in the same memory.
int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) { return cudaDriverGetVersion(version); }
int cuDeviceGetCount(int* count) { return cudaGetDeviceCount(count); }
int cuDeviceGet(int* device, int number) {
  *device = number;
  return 0;
}
int cuDeviceGetName(char* name, int size, int) {
  std::snprintf(name, static_cast<size_t>(size), "Stand-in");
  return 0;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
  *bytes = limit;
  return 0;
}
int cuDeviceGetPCIBusId(char* address, int size, int) {
  std::snprintf(address, static_cast<size_t>(size), "0000:01:00.0");
  return 0;
}
int cuDeviceGetAttribute(int* value, int, int) {  // the one that is asked for: whether its memory is the processor's
  *value = 0;
  return Alive();
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &device_blocks;
  return Alive();
}
int cuCtxPushCurrent_v2(void*) { return Alive(); }
int cuCtxPopCurrent_v2(void** context) {
  *context = &device_blocks;
  return 0;
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) { return cudaMalloc(reinterpret_cast<void**>(address), bytes); }
int cuMemFree_v2(uint64_t address) { return cudaFree(reinterpret_cast<void*>(address)); }
int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) { return cudaMemGetInfo(free_bytes, total); }
int cuGetErrorString(int error, const char** text) {
  *text = cudaGetErrorString(static_cast<cudaError_t>(error));
  return 0;
}

// NVML.
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char*, void** device) {
  *device = &device_blocks;
  return 0;
}
int nvmlDeviceGetMemoryInfo(void*, unsigned long long* total_free_used) {
  total_free_used[0] = limit;
  total_free_used[1] = limit - used;
  total_free_used[2] = used;
  return 0;
}

// Functions that succeed and do nothing, under names that headers declare otherwise.
#define NOTHING(name)                  \
  int nothing_##name() __asm__(#name); \
  int nothing_##name() { return 0; }
NOTHING(__cudaRegisterFatBinaryEnd) NOTHING(__cudaRegisterFunction) NOTHING(__cudaRegisterVar) NOTHING(__cudaUnregisterFatBinary)
NOTHING(cuTensorMapEncodeTiled)
NOTHING(cudaEventElapsedTime) NOTHING(cudaEventRecordWithFlags) NOTHING(cudaFuncSetAttribute) NOTHING(cudaKernelSetAttributeForDevice)
NOTHING(cudaLibraryUnload) NOTHING(cudaMemPoolDestroy) NOTHING(cudaMemPoolGetAttribute) NOTHING(cudaMemPoolSetAttribute) NOTHING(cudaMemPoolTrimTo)
NOTHING(cudaMemcpy2DAsync) NOTHING(cudaMemcpyFromSymbol)
NOTHING(cublasCreate_v2) NOTHING(cublasDestroy_v2) NOTHING(cublasDgeam) NOTHING(cublasDgemmBatched) NOTHING(cublasDgemmStridedBatched)
NOTHING(cublasDgemm_v2) NOTHING(cublasDgetrfBatched) NOTHING(cublasDgetriBatched) NOTHING(cublasGemmBatchedEx) NOTHING(cublasGemmEx)
NOTHING(cublasGemmStridedBatchedEx) NOTHING(cublasGetMathMode) NOTHING(cublasGetStatusName) NOTHING(cublasGetStatusString) NOTHING(cublasScopy_v2)
NOTHING(cublasSetMathMode) NOTHING(cublasSetStream_v2) NOTHING(cublasSgeam) NOTHING(cublasSgemmBatched) NOTHING(cublasSgemmStridedBatched)
NOTHING(cublasSgemm_v2) NOTHING(cublasSgetrfBatched) NOTHING(cublasSgetriBatched) NOTHING(cublasSscal_v2)
NOTHING(cublasLtCreate) NOTHING(cublasLtDestroy) NOTHING(cublasLtMatmul) NOTHING(cublasLtMatmulAlgoConfigSetAttribute)
NOTHING(cublasLtMatmulAlgoGetHeuristic) NOTHING(cublasLtMatmulAlgoInit) NOTHING(cublasLtMatmulDescCreate) NOTHING(cublasLtMatmulDescDestroy)
NOTHING(cublasLtMatmulDescSetAttribute) NOTHING(cublasLtMatmulPreferenceCreate) NOTHING(cublasLtMatmulPreferenceDestroy)
NOTHING(cublasLtMatmulPreferenceSetAttribute) NOTHING(cublasLtMatrixLayoutCreate) NOTHING(cublasLtMatrixLayoutDestroy)
NOTHING(cublasLtMatrixLayoutSetAttribute) NOTHING(cublasLtMatrixTransform) NOTHING(cublasLtMatrixTransformDescCreate)
NOTHING(cublasLtMatrixTransformDescDestroy)
}
