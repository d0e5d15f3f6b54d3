// Checks dense attention over float16 and int8 caches against scalar arithmetic without ONNX Runtime, so that it also runs where there is
// none: an emulated Arm. Prints the SIMD target; exits with 1 and one line where a result is off.

#include <hwy/base.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "attention_kernels.h"
#include "target.h"

namespace {

constexpr int64_t kCapacity = 96, kPast = 40, kTokens = 37;
std::mt19937 g_random(1);

void Expect(bool holds, const char* what, int64_t head_dim, bool int8, int64_t at) {
  if (holds) return;
  std::printf("%s is off: head_dim %d, int8 %d, at %d\n", what, static_cast<int>(head_dim), int8, static_cast<int>(at));
  std::exit(1);
}

// A cache of Element filled by two prompts and a step.
template <class Element>
class Checker {
  static constexpr bool kInt8 = sizeof(Element) == 1;

 public:
  Checker(int64_t kv_heads, int64_t group, int64_t head_dim)
      : rows_(kv_heads * kCapacity), key_(rows_ * head_dim), value_(rows_ * head_dim), key_scale_(rows_), value_scale_(rows_),
        key_range_(rows_ * 2), key_codes_(rows_ * (head_dim / 2)), cos_(kCapacity * head_dim / 2), sin_(cos_.size()) {
    for (size_t i = 0; i < cos_.size(); ++i) {
      cos_[i] = std::cos(static_cast<float>(i % 97));
      sin_[i] = std::sin(static_cast<float>(i % 97));
    }
    call_.heads = kv_heads * group;
    call_.kv_heads = kv_heads;
    call_.group = group;
    call_.head_dim = call_.rotary_dim = head_dim;
    call_.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    call_.capacity = kCapacity;
    call_.cos = cos_.data();
    call_.sin = sin_.data();
    call_.int8 = kInt8;
    call_.key = key_.data();
    call_.value = value_.data();
    call_.key_scale = kInt8 ? key_scale_.data() : nullptr;
    call_.value_scale = kInt8 ? value_scale_.data() : nullptr;
    call_.key_codes = key_codes_.data();
    call_.key_range = key_range_.data();
  }

  void Run() {
    Append(0, kPast);
    Prefill();
    Append(kPast, kTokens);
    Prefill();
    Append(kPast + kTokens, 1);
    Decode();
  }

 private:
  double Key(int64_t head, int64_t position, int64_t i) const { return Number(key_, key_scale_, head, position, i); }
  double Value(int64_t head, int64_t position, int64_t i) const { return Number(value_, value_scale_, head, position, i); }
  double Number(const std::vector<Element>& rows, const std::vector<hwy::float16_t>& scales, int64_t head, int64_t position, int64_t i) const {
    const int64_t row = head * kCapacity + position;
    if constexpr (kInt8) return rows[row * call_.head_dim + i] * static_cast<double>(hwy::F32FromF16(scales[row]));
    else return hwy::F32FromF16(rows[row * call_.head_dim + i]);
  }
  double Rotated(const float* x, int64_t position, int64_t i) const {
    const int64_t half = call_.head_dim / 2, at = position * half + i % half;
    return i < half ? double{x[i]} * cos_[at] - double{x[i + half]} * sin_[at] : double{x[i]} * cos_[at] + double{x[i - half]} * sin_[at];
  }

  // Appends random tokens and checks what the cache then holds.
  void Append(int64_t past, int64_t tokens) {
    call_.past = past;
    call_.tokens = tokens;
    call_.total = past + tokens;
    call_.pages = sol::DivideUp(call_.total, sol::kPageSize);
    call_.keep = call_.pages;
    qkv_.resize(static_cast<size_t>(tokens * (call_.heads + 2 * call_.kv_heads) * call_.head_dim));
    std::normal_distribution<float> normal;
    for (float& x : qkv_) x = normal(g_random);
    y_.assign(static_cast<size_t>(tokens * call_.heads * call_.head_dim), 0.0f);
    call_.qkv = qkv_.data();
    call_.y = y_.data();
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      for (int64_t page = past / sol::kPageSize; page < call_.pages; ++page) sol::BestAttentionKernels().append_page(call_, head, page);
      for (int64_t position = past; position < call_.total; ++position) {
        const float *key = call_.KeySource(position - past, head), *value = call_.ValueSource(position - past, head);
        double largest = 0;  // half a step of the coarser type, and the rounding of its scale
        for (int64_t i = 0; i < call_.head_dim; ++i) largest = std::max({largest, std::abs(Rotated(key, position, i)), double{std::abs(value[i])}});
        const double bound = kInt8 ? 0.51 * largest / 127 : largest / 2000;
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          Expect(std::abs(Key(head, position, i) - Rotated(key, position, i)) <= bound, "key", call_.head_dim, kInt8, position);
          Expect(std::abs(Value(head, position, i) - value[i]) <= bound, "value", call_.head_dim, kInt8, position);
        }
      }
      for (int64_t position = 0; position < call_.total; ++position) {
        double low = 1e9, high = -1e9;
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          low = std::min(low, Key(head, position, i));
          high = std::max(high, Key(head, position, i));
        }
        const double step = (high - low) / 15;
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          // half a step, and the rounding of minimum and step
          const double bound = 0.51 * step + 2e-3 * (std::abs(low) + std::abs(high));
          Expect(std::abs(Coded(head, position, i) - Key(head, position, i)) <= bound, "key code", call_.head_dim, kInt8, position);
        }
      }
    }
  }

  // A number as its code of 4 bits says it.
  double Coded(int64_t head, int64_t position, int64_t i) const {
    const int64_t page = position / sol::kPageSize, t = position % sol::kPageSize, bytes = call_.CodeBytes(), byte = i / 2;
    const int64_t whole = bytes / 4 * 4, rest = bytes - whole;
    const int64_t at = byte < whole ? byte / 4 * 16 + 4 * t + byte % 4 : 4 * whole + rest * t + byte - whole;
    const int code = call_.PageCodes(head, page)[at] >> (i % 2 * 4) & 15;
    const hwy::float16_t* range = call_.PageRange(head, page);
    return double{hwy::F32FromF16(range[t])} + code * double{hwy::F32FromF16(range[4 + t])};
  }

  void CheckOutput(const char* what) const {
    std::vector<double> weights(static_cast<size_t>(call_.total));
    for (int64_t token = 0; token < call_.tokens; ++token) {
      for (int64_t head = 0; head < call_.heads; ++head) {
        const int64_t kv_head = head / call_.group, seen = call_.past + token + 1;
        double sum = 0;
        for (int64_t t = 0; t < seen; ++t) {
          double score = 0;
          for (int64_t i = 0; i < call_.head_dim; ++i) score += Rotated(call_.QueryRow(token, head), call_.past + token, i) * Key(kv_head, t, i);
          sum += weights[t] = std::exp(call_.scale * score);
        }
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          double expected = 0;
          for (int64_t t = 0; t < seen; ++t) expected += weights[t] / sum * Value(kv_head, t, i);
          Expect(std::abs(y_[(token * call_.heads + head) * call_.head_dim + i] - expected) <= 1e-4, what, call_.head_dim, kInt8, token);
        }
      }
    }
  }

  void Prefill() {
    const sol::AttentionKernels& kernels = sol::BestAttentionKernels();
    const int64_t scratch = sol::RoundUp(kernels.prefill_scratch_floats(call_), sol::kMaxLanes);
    const int64_t bytes = (scratch + kernels.prefill_state_floats(call_)) * static_cast<int64_t>(sizeof(float));
    const std::unique_ptr<float[], decltype(&std::free)> memory(
        static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(sol::RoundUp(bytes, 64)))), &std::free);
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      for (int64_t block = 0; block < sol::DivideUp(call_.tokens, kernels.prefill_positions(call_)); ++block) {
        kernels.prefill_block(call_, head, block, 0, 1, memory.get(), memory.get() + scratch);
      }
    }
    CheckOutput("prefill");
  }

  void Decode() {
    const sol::AttentionKernels& kernels = sol::BestAttentionKernels();
    sol::DecodePlan plan{};
    plan.padded_dim = sol::RoundUp(call_.head_dim, sol::kMaxLanes);
    plan.chunk_tokens = sol::kMaxLanes;
    const auto chunks = static_cast<int32_t>(sol::DivideUp(call_.total, plan.chunk_tokens));
    std::vector<int32_t> first_chunk(call_.kv_heads + 1);
    for (int64_t head = 0; head <= call_.kv_heads; ++head) first_chunk[head] = static_cast<int32_t>(head) * chunks;
    plan.first_chunk = first_chunk.data();
    const size_t parts = static_cast<size_t>(call_.heads * chunks);
    std::vector<float> query(call_.heads * plan.padded_dim), max(parts), sum(parts), values(parts * plan.padded_dim);
    plan.query = query.data();
    plan.partial_max = max.data();
    plan.partial_sum = sum.data();
    plan.partial_values = values.data();
    kernels.prepare_queries(call_, plan);
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      for (int64_t chunk = first_chunk[head]; chunk < first_chunk[head + 1]; ++chunk) kernels.decode_chunk(call_, plan, head, chunk);
      kernels.combine_chunks(call_, plan, head);
    }
    CheckOutput("decode");
  }

  int64_t rows_;
  std::vector<Element> key_, value_;
  std::vector<hwy::float16_t> key_scale_, value_scale_, key_range_;
  std::vector<uint8_t> key_codes_;
  std::vector<float> cos_, sin_, qkv_, y_;
  sol::AttentionCall call_{};
};

}  // namespace

int main() {
  for (const int64_t head_dim : {64, 80, 18}) {
    Checker<hwy::float16_t>(2, 3, head_dim).Run();
    Checker<int8_t>(2, 3, head_dim).Run();
    Checker<int8_t>(1, 7, head_dim).Run();
  }
  std::printf("%s\n", sol::BestTargetName());
  return 0;
}
