// CUDA's driver in name, for tests: memory of the host with a count of its bytes, a limit, and a GPU that can be lost.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <map>

namespace {
std::map<uint64_t, size_t> blocks;
size_t used = 0, most = 0, limit = 1 << 20;
int failure = 0;  // what every call gives
int integrated = 0;
int contexts = 0;
}  // namespace

extern "C" {
size_t used_bytes() { return used; }
size_t most_used_bytes() { return most; }
void forget() {
  blocks.clear();
  used = 0;
}
void share_memory(int shared) { integrated = shared; }
void fail_with(int error) { failure = error; }
int open_contexts() { return contexts; }

int cuInit(unsigned) { return failure; }
int cuDeviceGet(int* device, int number) {
  *device = number;
  return failure;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
  *value = attribute == 18 ? integrated : -1;
  return failure;
}
int cuDevicePrimaryCtxRetain(void** context, int) {
  *context = &blocks;
  return failure;
}
int cuCtxPushCurrent_v2(void* context) {
  if (failure != 0) return failure;
  ++contexts;
  return context == &blocks ? 0 : 201;
}
int cuCtxPopCurrent_v2(void** context) {
  --contexts;
  *context = &blocks;
  return failure;
}
int cuMemAlloc_v2(uint64_t* address, size_t bytes) {
  if (failure != 0) return failure;
  if (contexts == 0) return 201;
  if (bytes == 0) return 1;
  if (used + bytes > limit) return 2;
  *address = reinterpret_cast<uint64_t>(std::calloc(bytes, 1));
  blocks[*address] = bytes;
  used += bytes;
  most = most > used ? most : used;
  return 0;
}
int cuMemFree_v2(uint64_t address) {
  if (failure != 0) return failure;
  const auto block = blocks.find(address);
  if (contexts == 0 || block == blocks.end()) return 1;
  used -= block->second;
  std::free(reinterpret_cast<void*>(address));
  blocks.erase(block);
  return 0;
}
int cuMemGetInfo_v2(size_t* free_bytes, size_t* total) {
  *total = limit;
  *free_bytes = limit - used;
  return failure;
}
int cuGetErrorString(int error, const char** text) {
  *text = error == 2 ? "out of memory" : error == 201 ? "invalid device context" : "the GPU is lost";
  return 0;
}
}
