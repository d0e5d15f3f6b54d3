// Rows on their way into a product: a norm or the activation, the active channels of largest magnitude, codes.
//
//   Source -> v [rows, K]    v = x, or RMS norm or layer norm of x, or act(x), or act(x[:, :K]) x[:, K:]
//   active                   v[k] = 0 for all but the `active` channels of largest |v[k]|; of equal ones the first stay
//   codes                    in every block of 32 channels C = round-half-even(v / a), a = max |v| / most; most is 127, and 32258 for a
//                            matrix at 8 bits, where C = 254 c1 + c2 is stored as two halves of int8. step = a / 32, sum = the sum of C
//
// For one row and a channel-major matrix the channels with C != 0 are listed as well, in quads of one block each.
//
// A thread block has a row; of a single row several, which all find out what is active and divide the codes. A warp has a block of 32
// channels, a channel a lane.

#include "cuda/device/block.h"
#include "cuda/matmul/matmul_kernels.h"

namespace sol::cuda {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMostShares = 8;
constexpr int kMostShared = 48 * 1024 - 10 * 1024;  // bytes of a row's values beside what the selection needs

__device__ __forceinline__ uint32_t MagnitudeBits(float value) { return __float_as_uint(value) & 0x7fffffffu; }

__device__ __forceinline__ float Sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float Activated(Activation activation, float x) {
  switch (activation) {
    case Activation::kSilu:
      return x * Sigmoid(x);
    case Activation::kGelu:
      return 0.5f * x * (1.0f + erff(x * 0.70710678118f));
    case Activation::kGeluTanh:
      return x * Sigmoid(2.0f * x * (0.7978845608f + 0.0356774081f * x * x));  // 0.5 x (1 + tanh u) = x sigmoid(2 u)
    case Activation::kRelu:
    case Activation::kRelu2:
      break;
  }
  const float rectified = x < 0.0f ? 0.0f : x;  // NaN passes
  return activation == Activation::kRelu2 ? rectified * rectified : rectified;
}

// One of the block's 32 channels a lane. `poison` spoils what comes of the block.
template <int kHalves>
__device__ void QuantizeBlock(float value, bool poison, int64_t row, int block, int K, const Codes& out) {
  constexpr int kMost = kHalves == 1 ? 127 : 127 * kHalfStep;
  const int lane = Lane(), blocks = K / kBlock;
  // A maximum of bits, not of floats: NaN wins, and spoils the outputs as it should.
  const float a = __uint_as_float(WarpMax(MagnitudeBits(value))) / static_cast<float>(kMost);
  int code = a > 0.0f ? __float2int_rn(value / a) : 0;
  code = code > kMost ? kMost : code < -kMost ? -kMost : code;
  const int sum = WarpSum(code);
  int halves[kHalves];
  if constexpr (kHalves == 2) {
    halves[0] = __float2int_rn(static_cast<float>(code) * (1.0f / kHalfStep));
    halves[1] = code - kHalfStep * halves[0];
  } else {
    halves[0] = code;
  }
  if (lane == 0) {
    out.step[row * blocks + block] = poison ? __uint_as_float(0x7fc00000u) : a / 32.0f;
    out.sum[row * blocks + block] = sum;
  }
  const int phased = lane % 4 * 8 + lane / 16 * 4 + lane / 4 % 4;
  const int even_odd = lane % 2 * 16 + lane / 2;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const int64_t at = (row * kHalves + h) * K + block * kBlock;
    if (out.phased != nullptr) out.phased[at + phased] = static_cast<int8_t>(halves[h]);
    if (out.even_odd != nullptr) out.even_odd[at + even_odd] = static_cast<int8_t>(halves[h]);
  }
  if (out.quads == nullptr) return;
  const uint32_t active = __ballot_sync(kAllLanes, code != 0);
  const int count = __popc(active), padded = (count + 3) / 4 * 4;
  if (lane == 0) out.quads[block] = padded / 4;
  auto* rows = reinterpret_cast<uint8_t*>(out.quad_rows) + block * kBlock;
  auto* codes = reinterpret_cast<int8_t*>(out.quad_codes) + block * kBlock;
  if (code != 0) {
    const int at = __popc(active & ((1u << lane) - 1u));
    rows[at] = static_cast<uint8_t>(lane);
#pragma unroll
    for (int h = 0; h < kHalves; ++h) codes[h * K + at] = static_cast<int8_t>(halves[h]);
    // Codes of zero up to the full quad, for the last row once more: no other row is read.
    if (at == count - 1) {
      for (int i = count; i < padded; ++i) {
        rows[i] = static_cast<uint8_t>(lane);
        for (int h = 0; h < kHalves; ++h) codes[h * K + i] = 0;
      }
    }
  }
}

struct QuantizeShared {
  WarpSums sums;
  SelectMemory select;
};

template <int kHalves>
__global__ void __launch_bounds__(kThreads, 1) QuantizeKernel(Source source, ActiveChannels active, int K, Codes out) {
  SOL_SHARED(QuantizeShared, shared);
  SOL_DYNAMIC_SHARED(dynamic);
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x), share = static_cast<int>(blockIdx.y), shares = static_cast<int>(gridDim.y);
  float* values = out.values != nullptr ? out.values + (row * shares + share) * K : reinterpret_cast<float*>(dynamic);
  if (row == 0 && share == 0) {
    for (int i = thread; i < out.count_of_counters; i += kThreads) out.counters[i] = 0;
  }

  // A thread reads again only what it wrote itself, to the end: a warp's blocks of channels are those of its threads.
  static_assert(kBlock == kWarp);
  if (source.kind == Source::kGatedActivation || source.kind == Source::kActivation) {
    const bool gated = source.kind == Source::kGatedActivation;
    const float* x = source.x + row * (gated ? 2 * static_cast<int64_t>(K) : K);
    for (int i = thread; i < K; i += kThreads) {
      const float value = Activated(source.activation, x[i]);
      values[i] = gated ? value * x[K + i] : value;
    }
  } else {
    const float* x = source.x + row * K;
    float sum = 0.0f;
    for (int i = thread; i < K; i += kThreads) {
      values[i] = x[i];
      sum += x[i];
    }
    if (source.kind != Source::kPlain) {
      const bool layer = source.kind == Source::kLayerNorm;
      const float mean = layer ? BlockSum<kThreads>(sum, shared.sums) / static_cast<float>(K) : 0.0f;
      float squares = 0.0f;
      for (int i = thread; i < K; i += kThreads) squares += (values[i] - mean) * (values[i] - mean);
      squares = BlockSum<kThreads>(squares, shared.sums);
      const float scale = 1.0f / sqrtf(squares / static_cast<float>(K) + source.epsilon);
      for (int i = thread; i < K; i += kThreads) {
        const float value = (values[i] - mean) * scale * source.weight[i];
        values[i] = layer ? value + source.bias[i] : value;
      }
    }
  }

  const int64_t wanted = active.count != nullptr ? *active.count : 0;
  const bool poison = wanted < 0 || wanted > K;
  if (wanted > 0 && wanted < K) {
    const auto magnitude = [&](int64_t i, uint32_t& key) {
      key = MagnitudeBits(values[i]);
      return true;
    };
    const Selected lowest = SelectLargest<kThreads>(K, static_cast<uint32_t>(wanted), magnitude, shared.select);
    int last = K;  // of those that equal the lowest, the ones up to here are kept
    const uint32_t room = static_cast<uint32_t>(wanted) - lowest.above;
    if (room < lowest.equal && lowest.key != 0) {
      const auto place = [&](int64_t i, uint32_t& key) {
        key = static_cast<uint32_t>(K - i);
        return MagnitudeBits(values[i]) == lowest.key;
      };
      last = K - static_cast<int>(SelectLargest<kThreads>(K, room, place, shared.select).key);
    }
    for (int i = thread; i < K; i += kThreads) {
      const uint32_t bits = MagnitudeBits(values[i]);
      if (bits < lowest.key || (bits == lowest.key && i > last)) values[i] = 0.0f;
    }
  }
  for (int block = share * kWarps + WarpOfBlock(); block < K / kBlock; block += shares * kWarps) {
    QuantizeBlock<kHalves>(values[block * kBlock + Lane()], poison, row, block, K, out);
  }
}

// Blocks for a row: each warp of a single row's has one block of channels to code, or few.
int Shares(const Weights& w, int64_t rows) {
  const int shares = static_cast<int>(DivideUp(w.K / kBlock, kWarps));
  return rows > 1 ? 1 : shares > kMostShares ? kMostShares : shares;
}

}  // namespace

void Quantize(Stream stream, const Weights& w, const Source& source, ActiveChannels active, int64_t rows, const Codes& codes) {
  const size_t shared = codes.values != nullptr ? 0 : static_cast<size_t>(w.K) * sizeof(float);
  const dim3 grid(static_cast<unsigned>(rows), static_cast<unsigned>(Shares(w, rows)));
  Launch(Halves(w.bits) == 2 ? QuantizeKernel<2> : QuantizeKernel<1>, grid, kThreads, shared, stream, source, active, w.K, codes);
}

Codes PlaceCodes(const Weights& w, int64_t rows, Scratch& scratch) {
  Codes codes;
  const size_t blocks = static_cast<size_t>(w.K / kBlock), halves = static_cast<size_t>(Halves(w.bits)), count = static_cast<size_t>(rows);
  const size_t K = static_cast<size_t>(w.K);
  codes.phased = scratch.Take<int8_t>(count * halves * K);
  codes.step = scratch.Take<float>(count * blocks);
  codes.sum = scratch.Take<int32_t>(count * blocks);
  if (rows == 1 && w.channel_major) {
    codes.quad_rows = scratch.Take<uint32_t>(blocks * 8);
    codes.quad_codes = scratch.Take<uint32_t>(halves * blocks * 8);
    codes.quads = scratch.Take<int32_t>(blocks);
  }
  if (rows == 1 && !w.channel_major) codes.even_odd = scratch.Take<int8_t>(halves * K);
  if (K * sizeof(float) > kMostShared) codes.values = scratch.Take<float>(static_cast<size_t>(rows > kMostShares ? rows : kMostShares) * K);
  const SplitK split = SplitOf(w, rows);
  codes.splits = split.splits;
  codes.count_of_counters = split.counters;
  if (split.splits > 1) {
    codes.partial = scratch.Take<float>(static_cast<size_t>(split.splits) * count * static_cast<size_t>(w.N));
    codes.counters = scratch.Take<uint32_t>(static_cast<size_t>(split.counters));
  }
  return codes;
}

}  // namespace sol::cuda
