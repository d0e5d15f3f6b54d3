// Checks the arithmetic of products with nested matrices against scalar references without ONNX Runtime, so that it also runs where there is
// none: an emulated Arm. Prints the SIMD target, and with an argument what the outputs' bits hash to;
// exits with 1 and one line where a result is off.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "cpu/matmul/matmul_kernels.h"
#include "cpu/simd/target.h"

namespace {

using sol::kBlock;
using sol::kTile;
std::mt19937 g_random(1);

int Uniform(int most) { return static_cast<int>(g_random() % static_cast<unsigned>(most + 1)); }

// A random matrix in both layouts, with its scales as powers of two.
struct Matrix {
  size_t K, N;
  std::vector<uint8_t> codes, block_major, channel_major, zero, plane1, plane2;
  std::vector<uint16_t> scale_bits;
  std::vector<float> scale;

  Matrix(size_t K, size_t N)
      : K(K), N(N), codes(K * N), block_major(K * N / 2), channel_major(K * N / 2), zero(K / kBlock * N),
        plane1(K * N / 4), plane2(K * N / 4), scale_bits(K / kBlock * N), scale(K / kBlock * N) {
    for (size_t i = 0; i < scale.size(); ++i) {
      const int exponent = Uniform(4);
      scale[i] = std::ldexp(1.0f, -exponent);
      scale_bits[i] = static_cast<uint16_t>((15 - exponent) << 10);
      zero[i] = static_cast<uint8_t>(Uniform(255));
    }
    for (size_t k = 0; k < K; ++k) {
      for (size_t n = 0; n < N; ++n) {
        const int code = Uniform(255);
        codes[k * N + n] = static_cast<uint8_t>(code);
        const size_t block = k / kBlock * N + n, c = k % kBlock;
        block_major[block * 16 + c / 2] |= static_cast<uint8_t>((code >> 4) << (c % 2 * 4));
        channel_major[k * (N / 2) + n / 2] |= static_cast<uint8_t>((code >> 4) << (n % 2 * 4));
        plane1[block * 8 + c / 4] |= static_cast<uint8_t>((code >> 2 & 3) << (c % 4 * 2));
        plane2[block * 8 + c / 4] |= static_cast<uint8_t>((code & 3) << (c % 4 * 2));
      }
    }
  }

  sol::Nested View(bool channel, int bits) const {
    sol::Nested w;
    w.base = channel ? channel_major.data() : block_major.data();
    w.scale = scale_bits.data();
    w.zero = zero.data();
    if (bits > 4) w.plane1 = plane1.data();
    if (bits > 6) w.plane2 = plane2.data();
    w.K = K;
    w.N = N;
    w.bits = bits;
    return w;
  }

  // From the quantized activations of one token, exactly.
  double Product(const int* x, const float* step, size_t n, int bits, float center) const {
    double sum = 0;
    for (size_t k = 0; k < K; ++k) {
      const size_t block = k / kBlock * N + n;
      const int code = codes[k * N + n] & (bits == 4 ? 0xF0 : bits == 6 ? 0xFC : 0xFF);
      sum += static_cast<double>(step[k / kBlock]) * scale[block] * (code - zero[block] - center) * x[k];
    }
    return sum;
  }
};

// A random matrix of 3 bits, with its scales as powers of two.
struct Codebook {
  size_t K, N;
  std::vector<uint8_t> codes, low, high, block_scale;
  std::vector<uint16_t> scale_bits;
  std::vector<float> scale;
  std::vector<int8_t> codebook;

  Codebook(size_t K, size_t N)
      : K(K), N(N), codes(K * N), low(K * N / 4), high(K * N / 8), block_scale(K / kBlock * N), scale_bits(N), scale(N),
        codebook(sol::kCodebookSize) {
    for (uint8_t& value : block_scale) value = static_cast<uint8_t>(Uniform(255));
    for (int8_t& entry : codebook) entry = static_cast<int8_t>(Uniform(254) - 127);
    codebook[0] = -127;
    codebook[sol::kCodebookSize - 1] = 127;
    for (size_t n = 0; n < N; ++n) {
      const int exponent = Uniform(4);
      scale[n] = std::ldexp(1.0f, -exponent);
      scale_bits[n] = static_cast<uint16_t>((15 - exponent) << 10);
    }
    for (size_t k = 0; k < K; ++k) {
      for (size_t n = 0; n < N; ++n) {
        const int code = Uniform(7);
        codes[k * N + n] = static_cast<uint8_t>(code);
        const size_t j = n % 8, field = n % 32 / 8;
        uint8_t* const of_low = &low[k * (N / 4) + n / 32 * 8 + j];
        uint8_t* const of_high = &high[k * (N / 8) + n / 32 * 4 + j % 4];
        if (field < 2) *of_low |= static_cast<uint8_t>(code << 3 * field);
        if (field == 2) *of_high |= static_cast<uint8_t>(code << j / 4 * 3);
        if (field == 3) *of_low |= static_cast<uint8_t>((code & 3) << 6);
        if (field == 3) *of_high |= static_cast<uint8_t>((code >> 2) << (6 + j / 4));
      }
    }
  }

  sol::Nested View() const {
    sol::Nested w;
    w.low = low.data();
    w.high = high.data();
    w.block_scale = block_scale.data();
    w.output_scale = scale_bits.data();
    w.codebook = codebook.data();
    w.K = K;
    w.N = N;
    w.bits = 3;
    return w;
  }

  // From the quantized activations of one token, exactly.
  double Product(const int* x, const float* step, size_t n) const {
    double sum = 0;
    for (size_t k = 0; k < K; ++k) {
      const uint8_t block = block_scale[k / kBlock * N + n];
      sum += 16.0 * step[k / kBlock] * (block & 63) * codebook[static_cast<size_t>(block >> 6) * 8 + codes[k * N + n]] * x[k];
    }
    return scale[n] * sum;
  }
};

// FNV-1a of every output, bit by bit: processors that agree print the same.
uint64_t g_outputs = 14695981039346656037u;

void Record(const float* outputs, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, outputs + i, sizeof(bits));
    g_outputs = (g_outputs ^ bits) * 1099511628211u;
  }
}

void Expect(bool good, const char* what, size_t K, size_t N, int bits) {
  if (good) return;
  std::printf("%s is wrong for K = %zu, N = %zu, %d bits\n", what, K, N, bits);
  std::exit(1);
}

// Numbers of tokens. Sums of whole numbers: std::normal_distribution differs from one C library to the next.
std::vector<float> Inputs(size_t count) {
  std::vector<float> x(count);
  for (float& value : x) value = Uniform(3) == 0 ? 0.0f : static_cast<float>(Uniform(4000) + Uniform(4000) - 4000) / 1024.0f;
  return x;
}

// The copy of the blocks `first` … `end` - 1 of a channel-major matrix, in the order that packed_matrix.h says, after what earlier blocks would take.
std::vector<uint8_t> CopyOf(const sol::Nested& w, size_t first, size_t end) {
  std::vector<uint8_t> copy(first * w.N * 19);
  const auto append = [&](const void* from, size_t bytes) {
    const uint8_t* const at = static_cast<const uint8_t*>(from);
    copy.insert(copy.end(), at, at + bytes);
  };
  for (size_t panel = 0; panel < w.N; panel += 128) {
    const size_t width = std::min<size_t>(128, w.N - panel);
    for (size_t b = first; b < end; ++b) {
      for (size_t k = b * kBlock; k < (b + 1) * kBlock; ++k) append(w.base + (k * w.N + panel) / 2, width / 2);
      append(w.scale + b * w.N + panel, width * 2);
      append(w.zero + b * w.N + panel, width);
    }
  }
  copy.resize(copy.size() + 256);  // vectors are read past the end
  return copy;
}

void CheckProducts(size_t K, size_t N, int bits, size_t tokens) {
  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  const Matrix matrix(K, N);
  const std::vector<float> x = Inputs(tokens * K);

  const size_t halves = sol::HalvesAt(bits), size = tokens * halves * K;
  std::vector<int8_t> natural(size), even_odd(size), phased(size);
  std::vector<float> step(tokens * K / kBlock), sum(tokens * K / kBlock);
  const sol::Activations q = {halves, natural.data(), even_odd.data(), phased.data(), step.data(), sum.data()};
  for (size_t t = 0; t < tokens; ++t) kernels.quantize(x.data() + t * K, K, t, q);
  std::vector<int> whole(tokens * K);
  for (size_t i = 0; i < x.size(); ++i) {
    const int8_t* code = &natural[i / K * halves * K + i % K];
    whole[i] = halves == 1 ? code[0] : sol::kHalfStep * code[0] + code[K];
    const float a = 16.0f * step[i / kBlock];
    Expect(std::abs(whole[i] * a - x[i]) <= 0.501f * a + 1e-12f, "quantize", K, N, bits);
    if (i % kBlock == 0) {
      float largest = 0.0f;
      for (size_t j = 0; j < kBlock; ++j) largest = std::max(largest, std::abs(x[i + j]));
      Expect(std::abs(a * (halves == 1 ? 127.0f : 32258.0f) - largest) <= 1e-6f * largest, "step", K, N, bits);
    }
  }

  std::vector<uint8_t> rows(K + sol::ActiveQuads::kSlack);
  std::vector<int8_t> codes(halves * (K + sol::ActiveQuads::kSlack));
  std::vector<uint32_t> begin(K / kBlock + 1);
  const sol::ActiveQuads active = {rows.data(), codes.data(), begin.data()};
  kernels.list_active(q, K, active);

  const float center = matrix.View(false, bits).Center();
  std::vector<double> expected(tokens * N);
  double largest = 0;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t n = 0; n < N; ++n) {
      expected[t * N + n] = matrix.Product(whole.data() + t * K, step.data() + t * K / kBlock, n, bits, center);
      largest = std::max(largest, std::abs(expected[t * N + n]));
    }
  }
  const auto near = [&](float got, size_t i) { return std::abs(got - expected[i]) <= 1e-5 * largest + 1e-6; };

  std::vector<float> y(N);
  kernels.row_block_major(matrix.View(false, bits), q, 0, N, y.data());
  for (size_t n = 0; n < N; ++n) Expect(near(y[n], n), "row_block_major", K, N, bits);
  Record(y.data(), N);
  const std::vector<float> block_major = y;
  std::fill(y.begin(), y.end(), 0.0f);
  kernels.row_channel_major(matrix.View(true, bits), q, active, 0, K / kBlock, 0, N, y.data());
  for (size_t n = 0; n < N; ++n) Expect(near(y[n], n), "row_channel_major", K, N, bits);
  Record(y.data(), N);
  const std::vector<float> channel_major = y;
  const size_t blocks = K / kBlock;
  const bool reads_copies = bits == 4 && std::strcmp(sol::BestTargetName(), "SSE4") != 0;
  for (const size_t first : {size_t{0}, blocks / 2}) {
    if (!reads_copies) break;
    std::vector<float> expected_part(N), part(N);
    kernels.row_channel_major(matrix.View(true, bits), q, active, first, blocks, 0, N, expected_part.data());
    const std::vector<uint8_t> copy = CopyOf(matrix.View(true, bits), first, blocks);
    sol::Nested w = matrix.View(true, bits);
    w.base = w.zero = nullptr;  // only the copy is read
    w.scale = nullptr;
    w.packed = copy.data();
    for (size_t from = 0; from < N; from += 256) kernels.row_channel_major(w, q, active, first, blocks, from, std::min(N, from + 256), part.data());
    Expect(std::memcmp(part.data(), expected_part.data(), N * sizeof(float)) == 0, "row_channel_major of a copy", K, N, bits);
  }

  alignas(64) static float sums[16 * kTile];
  for (const bool channel : {false, true}) {
    for (size_t n = 0; n < N; n += kTile) {
      std::fill(sums, sums + tokens * kTile, 0.0f);
      (channel ? kernels.tile_channel_major : kernels.tile_block_major)(matrix.View(channel, bits), q, 0, tokens, {0, blocks, n, n + kTile}, sums, kTile);
      for (size_t t = 0; t < tokens; ++t) {
        Record(sums + t * kTile, std::min(kTile, N - n));
        for (size_t i = n; i < std::min(N, n + kTile); ++i) {
          Expect(near(sums[t * kTile + i - n], t * N + i), channel ? "tile_channel_major" : "tile_block_major", K, N, bits);
        }
      }
    }
    // All outputs at once, in two parts of the blocks: the first token has the bits that it has alone.
    const size_t stride = (N + kTile - 1) / kTile * kTile;
    std::vector<float> all(tokens * stride, 0.0f);
    for (const auto& [first, end] : {std::pair(size_t{0}, blocks / 2), std::pair(blocks / 2, blocks)}) {
      (channel ? kernels.tile_channel_major : kernels.tile_block_major)(matrix.View(channel, bits), q, 0, tokens, {first, end, 0, N}, all.data(), stride);
    }
    const std::vector<float>& alone = channel ? channel_major : block_major;
    Expect(std::memcmp(all.data(), alone.data(), N * sizeof(float)) == 0, "bits of a token among others", K, N, bits);
  }
}

// At 3 bits, where every `sparse`-th channel counts and no channel of some blocks.
void CheckCodebook(size_t K, size_t N, size_t tokens, size_t sparse) {
  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  const Codebook matrix(K, N);
  std::vector<float> x = Inputs(tokens * K);
  for (size_t i = 0; i < x.size(); ++i) {
    if (i % sparse != 0 || (sparse > 1 && i / kBlock % 3 == 1)) x[i] = 0.0f;
  }
  std::vector<int8_t> natural(tokens * K), phased(tokens * K), codes(K + sol::ActiveQuads::kSlack);
  std::vector<uint8_t> rows(K + sol::ActiveQuads::kSlack);
  std::vector<float> step(tokens * K / kBlock), sum(tokens * K / kBlock);
  std::vector<uint32_t> begin(K / kBlock + 1);
  const sol::Activations q = {1, natural.data(), nullptr, phased.data(), step.data(), sum.data()};
  const sol::ActiveQuads active = {rows.data(), codes.data(), begin.data()};
  for (size_t t = 0; t < tokens; ++t) kernels.quantize(x.data() + t * K, K, t, q);
  kernels.list_active(q, K, active);

  const std::vector<int> whole(natural.begin(), natural.end());
  std::vector<double> expected(tokens * N);
  double largest = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    const size_t t = i / N;
    expected[i] = matrix.Product(whole.data() + t * K, step.data() + t * K / kBlock, i % N);
    largest = std::max(largest, std::abs(expected[i]));
  }
  const auto near = [&](float got, size_t i) { return std::abs(got - expected[i]) <= 1e-5 * largest + 1e-6; };

  // In parts of the outputs, and of the channels.
  std::vector<float> y(N), part(N);
  for (const size_t middle : {size_t{0}, N / 64 * 32}) {
    for (const size_t block : {size_t{0}, K / kBlock / 2}) {
      std::fill(y.begin(), y.end(), 0.0f);
      for (const bool second : {false, true}) {
        std::fill(part.begin(), part.end(), 0.0f);
        kernels.row_codebook(matrix.View(), q, active, second ? block : 0, second ? K / kBlock : block, 0, middle, part.data());
        kernels.row_codebook(matrix.View(), q, active, second ? block : 0, second ? K / kBlock : block, middle, N, part.data());
        for (size_t n = 0; n < N; ++n) y[n] += part[n];
      }
      for (size_t n = 0; n < N; ++n) Expect(near(y[n], n), "row_codebook", K, N, 3);
      Record(y.data(), N);
    }
  }
  std::fill(y.begin(), y.end(), 0.0f);
  kernels.row_codebook(matrix.View(), q, active, 0, K / kBlock, 0, N, y.data());
  const size_t stride = (N + kTile - 1) / kTile * kTile;
  std::vector<float> all(tokens * stride, 0.0f);
  kernels.tile_channel_major(matrix.View(), q, 0, tokens, {0, K / kBlock, 0, N}, all.data(), stride);
  for (size_t n = 0; n < N; ++n) Expect(all[n] == y[n], "bits of a token among others", K, N, 3);
  alignas(64) static float sums[16 * kTile];
  for (size_t n = 0; n < N; n += kTile) {
    std::fill(sums, sums + tokens * kTile, 0.0f);
    kernels.tile_channel_major(matrix.View(), q, 0, tokens, {0, K / kBlock, n, n + kTile}, sums, kTile);
    for (size_t t = 0; t < tokens; ++t) {
      Record(sums + t * kTile, std::min(kTile, N - n));
      for (size_t i = n; i < std::min(N, n + kTile); ++i) Expect(near(sums[t * kTile + i - n], t * N + i), "tile_channel_major", K, N, 3);
    }
  }
}

void CheckSpoiledCodebook(float one) {
  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  constexpr size_t K = 96, N = 320;
  const Codebook matrix(K, N);
  std::vector<float> x(K, 1.0f), step(K / kBlock), sum(K / kBlock), y(N, 0.0f);
  x[40] = one;
  std::vector<int8_t> natural(K), phased(K), codes(K + sol::ActiveQuads::kSlack);
  std::vector<uint8_t> rows(K + sol::ActiveQuads::kSlack);
  std::vector<uint32_t> begin(K / kBlock + 1);
  const sol::Activations q = {1, natural.data(), nullptr, phased.data(), step.data(), sum.data()};
  const sol::ActiveQuads active = {rows.data(), codes.data(), begin.data()};
  kernels.quantize(x.data(), K, 0, q);
  kernels.list_active(q, K, active);
  kernels.row_codebook(matrix.View(), q, active, 0, K / kBlock, 0, N, y.data());
  for (const float output : y) Expect(!std::isfinite(output), "row_codebook of what is not finite", K, N, 3);
  alignas(64) float sums[kTile] = {};
  kernels.tile_channel_major(matrix.View(), q, 0, 1, {0, K / kBlock, 0, kTile}, sums, kTile);
  for (const float output : sums) Expect(!std::isfinite(output), "tile_channel_major of what is not finite", K, N, 3);
}

// One channel that is not finite leaves no output that is.
void CheckSpoiled(float one, int bits) {
  const sol::MatMulKernels& kernels = sol::BestMatMulKernels();
  constexpr size_t K = 96, N = 70;
  const Matrix matrix(K, N);
  std::vector<float> x(K, 1.0f), step(K / kBlock), sum(K / kBlock), y(N);
  x[40] = one;
  const size_t halves = sol::HalvesAt(bits);
  std::vector<int8_t> natural(halves * K), even_odd(halves * K), phased(halves * K), codes(halves * (K + sol::ActiveQuads::kSlack));
  std::vector<uint8_t> rows(K + sol::ActiveQuads::kSlack);
  std::vector<uint32_t> begin(K / kBlock + 1);
  const sol::Activations q = {halves, natural.data(), even_odd.data(), phased.data(), step.data(), sum.data()};
  const sol::ActiveQuads active = {rows.data(), codes.data(), begin.data()};
  kernels.quantize(x.data(), K, 0, q);
  kernels.list_active(q, K, active);
  const auto check = [&](const float* outputs, size_t count, const char* what) {
    for (size_t n = 0; n < count; ++n) Expect(!std::isfinite(outputs[n]), what, K, N, bits);
  };
  kernels.row_block_major(matrix.View(false, bits), q, 0, N, y.data());
  check(y.data(), N, "row_block_major of what is not finite");
  std::fill(y.begin(), y.end(), 0.0f);
  kernels.row_channel_major(matrix.View(true, bits), q, active, 0, K / kBlock, 0, N, y.data());
  check(y.data(), N, "row_channel_major of what is not finite");
  alignas(64) float sums[kTile] = {};
  kernels.tile_block_major(matrix.View(false, bits), q, 0, 1, {0, K / kBlock, 0, kTile}, sums, kTile);
  check(sums, kTile, "tile_block_major of what is not finite");
  std::fill(sums, sums + kTile, 0.0f);
  kernels.tile_channel_major(matrix.View(true, bits), q, 0, 1, {0, K / kBlock, 0, kTile}, sums, kTile);
  check(sums, kTile, "tile_channel_major of what is not finite");
}

void CheckKeepLargest(const std::vector<float>& before, size_t count) {
  const size_t n = before.size();
  std::vector<float> x = before;
  const size_t passes = sol::BestMatMulKernels().keep_largest(x.data(), n, count);
  // Fewer than `count` numbers other than 0 must be noticed early, not after all octaves.
  const size_t zeros = static_cast<size_t>(std::count(before.begin(), before.end(), 0.0f));
  Expect(n - zeros >= count || passes <= 5, "passes of keep_largest", n, count, 0);
  std::vector<size_t> order(n);
  for (size_t i = 0; i < n; ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return std::abs(before[a]) > std::abs(before[b]); });
  for (size_t i = 0; i < n; ++i) {
    const float expected = i < count ? before[order[i]] : 0.0f;
    Expect(x[order[i]] == expected, "keep_largest", n, count, 0);
  }
}

// Of n channels, about `share` in 16 differ from 0, none is negative, and magnitudes lie within `octaves` and one more.
std::vector<float> OneSided(size_t n, int share, int octaves) {
  std::vector<float> x(n);
  for (float& value : x) {
    if (Uniform(15) < share) value = std::ldexp(1.0f + static_cast<float>(Uniform(1 << 20)) / (1 << 20), -Uniform(octaves));
  }
  return x;
}

}  // namespace

int main(int argc, char**) {
  std::printf("%s\n", sol::BestTargetName());
  for (const int bits : {4, 6, 8}) {
    CheckProducts(32, 2, bits, 1);
    CheckProducts(96, 64, bits, 5);
    CheckProducts(64, 202, bits, 9);
    CheckProducts(160, 390, bits, 4);
    for (const float one : {NAN, INFINITY, -INFINITY}) CheckSpoiled(one, bits);
  }
  for (const size_t sparse : {1, 3, 11}) {
    CheckCodebook(32, 32, 1, sparse);
    CheckCodebook(96, 64, 5, sparse);
    CheckCodebook(160, 288, 9, sparse);
    CheckCodebook(320, 864, 4, sparse);
    CheckCodebook(64, 1024, 1, sparse);
  }
  for (const float one : {NAN, INFINITY, -INFINITY}) CheckSpoiledCodebook(one);
  for (const size_t n : {1, 31, 96, 333}) {
    std::vector<float> levels(n);
    for (float& value : levels) value = static_cast<float>(Uniform(40) - 20);
    for (const size_t count : {size_t{1}, n / 3 + 1, n}) {
      CheckKeepLargest(levels, count);
      for (const int share : {0, 1, 3, 8, 16}) {
        for (const int octaves : {1, 9, 120}) CheckKeepLargest(OneSided(n, share, octaves), count);
      }
    }
  }
  CheckKeepLargest(OneSided(9728, 3, 8), 3000);
  if (argc > 1) std::printf("%016llx\n", static_cast<unsigned long long>(g_outputs));
  return 0;
}
