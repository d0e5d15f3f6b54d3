// One token's channels as the products with one matrix read them.
#pragma once

#include <algorithm>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/threads/arena.h"

namespace sol {

class TokenInput {
 public:
  TokenInput() = default;

  static TokenInput BlockMajor(const Nested& w, Arena& arena) {
    TokenInput input(w, arena);
    input.codes_.even_odd = arena.Take<int8_t>(w.Parts() * w.K);
    if (w.bits > 4) input.codes_.phased = arena.Take<int8_t>(w.Parts() * w.K);
    return input;
  }

  static TokenInput ChannelMajor(const Nested& w, Arena& arena) {
    TokenInput input(w, arena);
    input.codes_.natural = arena.Take<int8_t>(w.Parts() * w.K);
    input.codes_.phased = arena.Take<int8_t>(w.Parts() * w.K);
    input.pruned_ = arena.Take<float>(w.K);
    const size_t size = w.K + ActiveQuads::kSlack;
    input.active_ = {arena.Take<uint8_t>(size), arena.Take<int8_t>(w.Parts() * size), arena.Take<uint32_t>(w.K / kBlock + 1)};
    return input;
  }

  // Reads x [K], of which the `keep` channels of largest magnitude count.
  void Read(const float* x, size_t keep) {
    const Kernels& kernels = BestKernels();
    if (keep < K_) {
      std::copy_n(x, K_, pruned_);
      kernels.keep_largest(pruned_, K_, keep);
      x = pruned_;
    }
    kernels.quantize(x, K_, 0, codes_);
    if (active_.rows != nullptr) kernels.list_active(codes_, K_, active_);
  }
  void Read(const float* x) { Read(x, K_); }

  const Activations& Codes() const { return codes_; }
  const ActiveQuads& Active() const { return active_; }

 private:
  TokenInput(const Nested& w, Arena& arena) : K_(w.K) {
    codes_.parts = w.Parts();
    codes_.step = arena.Take<float>(w.K / kBlock);
    codes_.sum = arena.Take<float>(w.K / kBlock);
  }

  size_t K_ = 0;
  Activations codes_;
  ActiveQuads active_;
  float* pruned_ = nullptr;
};

}  // namespace sol
