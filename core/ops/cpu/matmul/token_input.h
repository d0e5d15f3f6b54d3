// One token's x [K] as the product with one matrix reads it: its codes, and for a channel-major matrix the list of active channels.
#pragma once

#include <algorithm>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/threads/arena.h"

namespace sol {

class TokenInput {
 public:
  TokenInput() = default;

  // Memory for products with a block-major matrix, or with a channel-major one.
  static TokenInput BlockMajor(const Nested& w, Arena& arena) {
    TokenInput input(w, arena);
    input.codes_.even_odd = arena.Take<int8_t>(w.Halves() * w.K);
    if (w.bits > 4) input.codes_.phased = arena.Take<int8_t>(w.Halves() * w.K);
    return input;
  }
  static TokenInput ChannelMajor(const Nested& w, Arena& arena) {
    TokenInput input(w, arena);
    input.codes_.natural = arena.Take<int8_t>(w.Halves() * w.K);
    input.codes_.phased = arena.Take<int8_t>(w.Halves() * w.K);
    input.largest_ = arena.Take<float>(w.K);
    const size_t size = w.K + ActiveQuads::kSlack;
    input.active_ = {arena.Take<uint8_t>(size), arena.Take<int8_t>(w.Halves() * size), arena.Take<uint32_t>(w.K / kBlock + 1)};
    return input;
  }

  // Rounds x [K] to codes. With active < K only the `active` channels of largest magnitude count; the others are zero.
  void Quantize(const float* x, size_t active) {
    const MatMulKernels& kernels = BestMatMulKernels();
    if (active < K_) {
      std::copy_n(x, K_, largest_);
      kernels.keep_largest(largest_, K_, active);
      x = largest_;
    }
    kernels.quantize(x, K_, 0, codes_);
    if (active_.rows != nullptr) kernels.list_active(codes_, K_, active_);
  }
  void Quantize(const float* x) { Quantize(x, K_); }

  const Activations& Codes() const { return codes_; }
  const ActiveQuads& Active() const { return active_; }

 private:
  TokenInput(const Nested& w, Arena& arena) : K_(w.K) {
    codes_.halves = w.Halves();
    codes_.step = arena.Take<float>(w.K / kBlock);
    codes_.sum = arena.Take<float>(w.K / kBlock);
  }

  size_t K_ = 0;
  Activations codes_;
  ActiveQuads active_;
  float* largest_ = nullptr;  // [K], x without the channels that do not count
};

}  // namespace sol
