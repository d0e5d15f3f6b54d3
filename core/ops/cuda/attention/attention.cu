// Attention as a sequence of launches, and the memory between them. docs/reference/bundle-details.md section 3, SparseAttention, has the arithmetic.
//
//   one new token     attention_select.cu: append, weights and scores of old tokens, the lowest score read; then attention_chunks.cu
//   2 to 16 tokens    append; then attention_chunks.cu
//   more              append; then attention_prompt.cu

#include "cuda/attention/attention_kernels.h"
#include "cuda/device/block.h"

namespace sol::cuda {

AttentionScratch PlaceAttention(const AttentionCall& call, Scratch& scratch) {
  AttentionScratch all;
  const auto heads = static_cast<size_t>(call.heads), kv_heads = static_cast<size_t>(call.kv_heads), capacity = static_cast<size_t>(call.capacity);
  if (call.tokens == 1) {
    const auto token_blocks = static_cast<size_t>(TokenBlocksOf(call));
    all.weights = scratch.Take<float>(heads * capacity);
    all.block_max = scratch.Take<float>(heads * token_blocks);
    all.block_sum = scratch.Take<float>(heads * token_blocks);
    all.scores = scratch.Take<uint32_t>(kv_heads * capacity);
    all.bins = scratch.Take<uint32_t>(kFirstBins);
    all.candidates = scratch.Take<uint32_t>(kv_heads * capacity);
    all.places = scratch.Take<uint32_t>(kv_heads * capacity);
    all.selection = scratch.Take<Selection>(1);
  }
  if (call.tokens <= kMostDecodeTokens) {
    const size_t rows = kv_heads * static_cast<size_t>(ChunksOf(call)) * static_cast<size_t>(PassesOf(call) * RowsAtOnce(call));
    all.partial_max = scratch.Take<float>(rows);
    all.partial_sum = scratch.Take<float>(rows);
    all.partial_values = scratch.Take<float>(rows * static_cast<size_t>(call.head_dim));
    all.counters = scratch.Take<uint32_t>(1 + kv_heads * static_cast<size_t>(PassesOf(call)));
  }
  return all;
}

void Attend(Stream stream, const AttentionCall& call, const AttentionScratch& scratch) {
  if (call.tokens == 1) {
    SelectTokens(stream, call, scratch);
  } else {
    AppendTokens(stream, call, scratch);
  }
  if (call.tokens <= kMostDecodeTokens) {
    AttendChunks(stream, call, scratch);
  } else {
    AttendPrompt(stream, call);
  }
}

void CopyBytes(Stream stream, void* to, const void* from, size_t bytes) {
#ifdef SOL_CUDA_EMULATION
  static_cast<void>(stream);
  std::memcpy(to, from, bytes);
#else
  const cudaError_t error = cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, static_cast<cudaStream_t>(stream));
  if (error != cudaSuccess) throw std::runtime_error(std::string("a cache could not be copied: ") + cudaGetErrorString(error));
#endif
}

}  // namespace sol::cuda
