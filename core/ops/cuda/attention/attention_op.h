// Attention as part of an operator: its inputs checked, its cache bound, its launches.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>

#include "common/inputs/attention_inputs.h"
#include "common/onnx/op.h"
#include "cuda/attention/attention.h"
#include "cuda/onnx/run.h"

namespace sol::cuda {

class AttentionOp {
 public:
  // Scales of an int8 cache are inputs from `scale_port` on.
  AttentionOp(const Attributes& attributes, const char* op, bool int8, size_t scale_port, int64_t layer = CountInput::kNoLayer)
      : op_(op), int8_(int8), scale_port_(scale_port), sizes_(ReadAttentionSizes(attributes, op, int8, scale_port)),
        past_length_(attributes, op, kKeyPort + 4, "past_length"), kv_pages_(attributes, op, kKeyPort + 5, "kv_pages", layer) {}

  int64_t QkvSize() const { return (sizes_.heads + 2 * sizes_.kv_heads) * sizes_.head_dim; }
  int64_t OutputSize() const { return sizes_.heads * sizes_.head_dim; }

  // Checks a call of `tokens` > 0 new tokens and makes the outputs of the cache. The caller adds qkv and y. What the counts say is
  // checked on the device.
  AttentionCall Begin(const Run& run, const Tensor& cos, const Tensor& sin, int64_t tokens) const {
    const Context& context = run.Inputs();
    const int64_t dim = sizes_.head_dim, heads = sizes_.kv_heads;
    const int64_t capacity = ReadCapacity(op_, context.Input(kKeyPort), int8_, heads, dim);
    if (tokens > capacity) {
      throw Error(std::string(op_) + ": input past_length: got " + std::to_string(tokens) + " new tokens, expected at most the capacity " +
                  std::to_string(capacity) + "; enlarge the cache");
    }
    if (sizes_.rotary_dim > 0) {  // else the tables are not read
      Expect(op_, "cos", cos, kFloat, {-1, sizes_.rotary_dim / 2});
      Expect(op_, "sin", sin, kFloat, {cos.dims[0], sizes_.rotary_dim / 2});
    }

    AttentionCall call;
    call.heads = static_cast<int>(sizes_.heads);
    call.kv_heads = static_cast<int>(heads);
    call.group = call.heads / call.kv_heads;
    call.head_dim = static_cast<int>(dim);
    call.rotary_dim = static_cast<int>(sizes_.rotary_dim);
    call.sinks = static_cast<int>(sizes_.sinks);
    call.window = static_cast<int>(std::min<int64_t>(sizes_.window, kMaxCapacity));
    call.scale = sizes_.scale;
    call.softcap = sizes_.softcap;
    call.int8 = int8_;
    call.capacity = static_cast<int>(capacity);
    call.tokens = static_cast<int>(tokens);
    call.table_rows = static_cast<int>(std::min<int64_t>(cos.dims[0], kMaxCapacity));
    call.cos = cos.As<float>();
    call.sin = sin.As<float>();
    call.past_length = past_length_.Where(context);
    call.kv_pages = kv_pages_.Where(context);
    const std::initializer_list<int64_t> rows{1, heads, capacity, dim}, scales{1, heads, capacity};
    if (int8_) {
      call.key = Present<int8_t>(run, "past_key", kKeyPort, 1, kInt8, rows);
      call.value = Present<int8_t>(run, "past_value", kKeyPort + 1, 2, kInt8, rows);
      call.key_scale = Present<uint16_t>(run, "past_key_scale", scale_port_, kScaleOutput, kFloat16, scales);
      call.value_scale = Present<uint16_t>(run, "past_value_scale", scale_port_ + 1, kScaleOutput + 1, kFloat16, scales);
    } else {
      call.key = Present<uint16_t>(run, "past_key", kKeyPort, 1, kFloat16, rows);
      call.value = Present<uint16_t>(run, "past_value", kKeyPort + 1, 2, kFloat16, rows);
    }
    call.key_codes = Present<uint8_t>(run, "past_key_codes", kKeyPort + 2, 3, kUInt8, {1, heads, capacity, dim / 2});
    call.key_range = Present<uint16_t>(run, "past_key_range", kKeyPort + 3, 4, kFloat16, {1, heads, capacity, 2});
    return call;
  }

 private:
  // A tensor of the cache that a call appends to: the caller's own, where it is bound as input and output, else a copy.
  template <class T>
  T* Present(const Run& run, const char* name, size_t input, size_t output, Type type, std::initializer_list<int64_t> shape) const {
    T* present = run.Inputs().Output<T>(output, shape);
    if (present == run.Inputs().InputData(input)) return present;
    const Tensor past = run.Inputs().Input(input);
    Expect(op_, name, past, type, shape);
    CopyBytes(run.Queue(), present, past.data, static_cast<size_t>(past.Elements()) * sizeof(T));
    return present;
  }

  const char* op_;
  bool int8_;
  size_t scale_port_;
  AttentionSizes sizes_;
  CountInput past_length_, kv_pages_;
};

}  // namespace sol::cuda
