// Checks attention over float16 and int8 caches, and the choice of tokens, against scalar arithmetic without ONNX Runtime, so that it also
// runs where there is none: an emulated Arm, and the thread sanitizer. Prints the SIMD target; exits with 1 and one line where a result is
// off.

#include <hwy/base.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <vector>

#include "cpu/attention/attention_kernels.h"
#include "cpu/simd/target.h"

namespace {

constexpr int64_t kPast = 40, kTokens = 37, kSinks = 5;
std::mt19937 g_random(1);

void Expect(bool holds, const char* what, int64_t head_dim, bool int8, int64_t at) {
  if (holds) return;
  std::printf("%s is off: head_dim %d, int8 %d, at %d\n", what, static_cast<int>(head_dim), int8, static_cast<int>(at));
  std::exit(1);
}

// Calls f(0) … f(count - 1), each in a thread of its own.
template <class F>
void InThreads(int64_t count, const F& f) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back([&f, i] { f(i); });
  for (std::thread& thread : threads) thread.join();
}

// A cache of Element.
template <class Element>
class Checker {
  static constexpr bool kInt8 = sizeof(Element) == 1;

 public:
  Checker(int64_t kv_heads, int64_t group, int64_t head_dim, int64_t capacity)
      : rows_(kv_heads * capacity), key_(rows_ * head_dim), value_(rows_ * head_dim), key_scale_(rows_), value_scale_(rows_),
        key_range_(rows_ * 2), key_codes_(rows_ * (head_dim / 2)), cos_(capacity * head_dim / 2), sin_(cos_.size()) {
    for (size_t i = 0; i < cos_.size(); ++i) {
      cos_[i] = std::cos(static_cast<float>(i % 97));
      sin_[i] = std::sin(static_cast<float>(i % 97));
    }
    call_.heads = kv_heads * group;
    call_.kv_heads = kv_heads;
    call_.group = group;
    call_.head_dim = call_.rotary_dim = head_dim;
    call_.scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
    call_.capacity = capacity;
    call_.sinks = kSinks;
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

  // Two prompts and a step that reads all tokens.
  void Run() {
    Append(0, kPast);
    Prefill();
    Append(kPast, kTokens);
    Prefill();
    Append(kPast + kTokens, 1);
    Decode();
  }

  // A step on `past` tokens that chooses as many as `kv_pages` pages hold, twice: the second time by queries so long that most scores are 0.
  void RunChoice(int64_t past, int64_t kv_pages) {
    Append(0, past);
    for (const float length : {1.0f, 1000.0f}) {
      Append(past, 1);
      for (int64_t i = 0; i < call_.heads * call_.head_dim; ++i) qkv_[i] *= length;
      call_.kv_pages = kv_pages;
      DecodeChosen();
    }
  }

 private:
  double Key(int64_t head, int64_t position, int64_t i) const { return Number(key_, key_scale_, head, position, i); }
  double Value(int64_t head, int64_t position, int64_t i) const { return Number(value_, value_scale_, head, position, i); }
  double Number(const std::vector<Element>& rows, const std::vector<hwy::float16_t>& scales, int64_t head, int64_t position, int64_t i) const {
    const int64_t row = head * call_.capacity + position;
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
    call_.kv_pages = call_.pages;
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

  // A key's code of 4 bits, and the minimum and the step that it counts from.
  int Code(int64_t head, int64_t position, int64_t i) const {
    const int64_t page = position / sol::kPageSize, t = position % sol::kPageSize, bytes = call_.CodeBytes(), byte = i / 2;
    const int64_t whole = bytes / 4 * 4, rest = bytes - whole;
    const int64_t at = byte < whole ? byte / 4 * 16 + 4 * t + byte % 4 : 4 * whole + rest * t + byte - whole;
    return call_.PageCodes(head, page)[at] >> (i % 2 * 4) & 15;
  }
  double Minimum(int64_t head, int64_t position) const {
    return hwy::F32FromF16(call_.PageRange(head, position / sol::kPageSize)[position % sol::kPageSize]);
  }
  double Step(int64_t head, int64_t position) const {
    return hwy::F32FromF16(call_.PageRange(head, position / sol::kPageSize)[sol::kPageSize + position % sol::kPageSize]);
  }
  double Coded(int64_t head, int64_t position, int64_t i) const { return Minimum(head, position) + Code(head, position, i) * Step(head, position); }

  // `read`: whether a KV head reads a token.
  template <class Read>
  void CheckOutput(const char* what, const Read& read) const {
    std::vector<double> weights(static_cast<size_t>(call_.total));
    for (int64_t token = 0; token < call_.tokens; ++token) {
      for (int64_t head = 0; head < call_.heads; ++head) {
        const int64_t kv_head = head / call_.group, seen = call_.past + token + 1;
        double sum = 0, highest = -1e9;
        for (int64_t t = 0; t < seen; ++t) {
          double score = 0;
          for (int64_t i = 0; i < call_.head_dim; ++i) score += Rotated(call_.QueryRow(token, head), call_.past + token, i) * Key(kv_head, t, i);
          weights[t] = read(kv_head, t) ? call_.scale * score : -1e9;
          highest = std::max(highest, weights[t]);
        }
        for (int64_t t = 0; t < seen; ++t) sum += weights[t] = std::exp(weights[t] - highest);
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          double expected = 0;
          for (int64_t t = 0; t < seen; ++t) expected += weights[t] / sum * Value(kv_head, t, i);
          Expect(std::abs(y_[(token * call_.heads + head) * call_.head_dim + i] - expected) <= 1e-4, what, call_.head_dim, kInt8, token);
        }
      }
    }
  }

  void CheckOutput(const char* what) const {
    CheckOutput(what, [](int64_t, int64_t) { return true; });
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

  void DecodeChosen() {
    const sol::AttentionKernels& kernels = sol::BestAttentionKernels();
    sol::DecodePlan plan{};
    plan.sparse = true;
    plan.padded_dim = sol::RoundUp(call_.head_dim, sol::kMaxLanes);
    plan.code_stride = call_.CodeStride();
    plan.old_tokens = (call_.pages - 1) * sol::kPageSize;
    plan.chunk_tokens = 4 * sol::kMaxLanes;
    plan.token_blocks = sol::DivideUp(plan.old_tokens, sol::kBlockTokens);
    plan.score_stride = sol::RoundUp(plan.old_tokens, sol::kMaxLanes);
    plan.list_stride = plan.score_stride + sol::kPageSize + sol::kMaxLanes;
    const int64_t chunks = call_.kv_heads * sol::DivideUp(call_.total, plan.chunk_tokens), parts = call_.kv_heads * plan.token_blocks;
    std::vector<float> query(call_.heads * plan.padded_dim), step(call_.heads), sum(call_.heads), weights(call_.heads * plan.score_stride),
        block_max(call_.heads * plan.token_blocks), block_sum(block_max), max(chunks * call_.group), sums(max), values(max.size() * plan.padded_dim);
    std::vector<int8_t> low(call_.heads * plan.code_stride), high(low);
    std::vector<int32_t> scores(call_.kv_heads * plan.score_stride), candidates(scores.size() + sol::kMaxLanes),
        tokens(call_.kv_heads * plan.list_stride), listed(call_.kv_heads), first_chunk(call_.kv_heads + 1);
    std::vector<std::atomic<int32_t>> pending(call_.kv_heads);
    plan.query = query.data();
    plan.query_low = low.data();
    plan.query_high = high.data();
    plan.query_step = step.data();
    plan.query_sum = sum.data();
    plan.token_weights = weights.data();
    plan.block_max = block_max.data();
    plan.block_sum = block_sum.data();
    plan.token_scores = scores.data();
    plan.candidates = candidates.data();
    plan.tokens = tokens.data();
    plan.listed = listed.data();
    plan.first_chunk = first_chunk.data();
    plan.partial_max = max.data();
    plan.partial_sum = sums.data();
    plan.partial_values = values.data();
    plan.pending_chunks = pending.data();

    kernels.prepare_queries(call_, plan);
    InThreads(parts, [&](int64_t i) { kernels.weigh_tokens(call_, plan, i / plan.token_blocks, i % plan.token_blocks); });
    InThreads(parts, [&](int64_t i) { kernels.score_tokens(call_, plan, i / plan.token_blocks, i % plan.token_blocks); });
    kernels.select_tokens(call_, plan);
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      InThreads(first_chunk[head + 1] - first_chunk[head], [&](int64_t i) { kernels.decode_chunk(call_, plan, head, first_chunk[head] + i); });
      kernels.combine_chunks(call_, plan, head);
    }
    CheckScores(plan);
    CheckOutput("step on chosen tokens", CheckChoice(plan));
  }

  // The scores of old tokens, from the codes of queries and keys.
  void CheckScores(const sol::DecodePlan& plan) const {
    std::vector<double> expected(plan.old_tokens), share(plan.old_tokens);
    for (int64_t kv_head = 0; kv_head < call_.kv_heads; ++kv_head) {
      std::fill(expected.begin(), expected.end(), 0.0);
      for (int64_t head = kv_head * call_.group; head < (kv_head + 1) * call_.group; ++head) {
        const double step = double{plan.query_step[head]} / call_.scale / sol::kLog2E;
        std::vector<int> codes(call_.head_dim);
        for (int64_t i = 0; i < call_.head_dim; ++i) {
          codes[i] = (i % 2 == 0 ? plan.query_low : plan.query_high)[head * plan.code_stride + i / 8 * 16 + i / 2 % 4];
          Expect(std::abs(step * codes[i] - Rotated(call_.QueryRow(0, head), call_.past, i)) <= 0.51 * step, "query code", call_.head_dim, kInt8, i);
        }
        double highest = -1e9, total = 0;
        for (int64_t t = 0; t < plan.old_tokens; ++t) {
          double product = 0;
          for (int64_t i = 0; i < call_.head_dim; ++i) product += codes[i] * Coded(kv_head, t, i);
          share[t] = call_.scale * step * product;
          highest = std::max(highest, share[t]);
        }
        for (double& one : share) total += one = std::exp(one - highest);
        for (int64_t t = 0; t < plan.old_tokens; ++t) expected[t] += share[t] / total;
      }
      for (int64_t t = 0; t < plan.old_tokens; ++t) {
        float score;
        std::memcpy(&score, plan.token_scores + kv_head * plan.score_stride + t, sizeof(score));
        Expect(std::abs(score - expected[t]) <= 0.02 * expected[t] + 1e-25, "score", call_.head_dim, kInt8, t);
      }
    }
  }

  // That the tokens listed are those of the highest scores, sinks and the newest page, in order; returns whether a KV head reads a token.
  auto CheckChoice(const sol::DecodePlan& plan) const {
    std::vector<int64_t> order;  // of old tokens, in all heads' scores
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      for (int64_t t = 0; t < plan.old_tokens; ++t) order.push_back(head * plan.score_stride + t);
    }
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return plan.token_scores[a] > plan.token_scores[b]; });
    std::vector<std::vector<bool>> read(call_.kv_heads, std::vector<bool>(call_.total));
    for (int64_t i = 0; i < call_.kv_heads * call_.kv_pages * sol::kPageSize; ++i) read[order[i] / plan.score_stride][order[i] % plan.score_stride] = true;
    for (int64_t head = 0; head < call_.kv_heads; ++head) {
      const int32_t* listed = plan.tokens + head * plan.list_stride;
      for (int64_t t = 0; t < call_.total; ++t) {
        if (t < call_.sinks || t >= plan.old_tokens) read[head][t] = true;
        if (read[head][t]) Expect(*listed++ == t, "list of tokens", call_.head_dim, kInt8, t);
      }
      Expect(listed == plan.tokens + head * plan.list_stride + plan.listed[head], "length of a list", call_.head_dim, kInt8, head);
    }
    return [read](int64_t head, int64_t t) { return read[head][t]; };
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
  for (const int64_t head_dim : {64, 80, 22}) {
    Checker<hwy::float16_t>(2, 3, head_dim, 96).Run();
    Checker<int8_t>(2, 3, head_dim, 96).Run();
    Checker<int8_t>(1, 7, head_dim, 96).Run();
    // Two tasks of scores a head, and so many tokens that a sample bounds the lowest score; few; none but sinks.
    Checker<hwy::float16_t>(2, 3, head_dim, 1100).RunChoice(1049, 90);
    Checker<int8_t>(1, 7, head_dim, 1100).RunChoice(1034, 3);
    Checker<int8_t>(2, 2, head_dim, 64).RunChoice(30, 0);
  }
  std::printf("%s\n", sol::BestTargetName());
  return 0;
}
