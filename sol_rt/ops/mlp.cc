#include "mlp.h"

#include "fetch.h"

namespace sol {
namespace {

constexpr size_t kTokensAtOnce = 128;  // a task's sums stay in the core's own cache
constexpr size_t kTokensAChunk = 512;  // bounds the scratch memory of a long prompt

// One token: whole vectors of outputs, and tasks as wide as can be: a processor reads beyond the end of every run of memory, and what
// it reads there is lost.
constexpr size_t kUpStep = 128;
constexpr size_t kMostUpOutputs = 16384;
constexpr size_t kMostParts = 4;
constexpr size_t kMostDownOutputs = 2048;
constexpr size_t kFetchedBytes = 16384;  // about what memory gives while a phase begins

Activation ReadActivation(const Attributes& attributes, const char* op) {
  const std::string name = attributes.String("activation");
  if (name == "silu") return Activation::kSilu;
  if (name == "gelu") return Activation::kGelu;
  if (name == "gelu_tanh") return Activation::kGeluTanh;
  if (name == "relu") return Activation::kRelu;
  throw Error(std::string(op) + ": attribute activation: got " + name +
              ", expected silu, gelu, gelu_tanh or relu; export the bundle again");
}

size_t Kept(const char* op, const char* name, int64_t count, size_t channels) {
  if (count < 0 || count > static_cast<int64_t>(channels)) {
    throw Error(std::string(op) + ": input " + name + ": got " + std::to_string(count) + ", expected 0 to " +
                std::to_string(channels) + " channels");
  }
  return count == 0 ? channels : static_cast<size_t>(count);
}

void Start(const float* bias, size_t begin, size_t end, float* y) {
  if (bias != nullptr) {
    std::copy(bias + begin, bias + end, y + begin);
  } else {
    std::fill(y + begin, y + end, 0.0f);
  }
}

// Prunes and quantizes every token.
void QuantizeAll(const Context& context, const float* x, size_t tokens, size_t n, size_t keep, const Activations& q) {
  constexpr size_t kRows = 16;
  context.ParallelFor((tokens + kRows - 1) / kRows, [&](size_t task) {
    thread_local Buffer pruned;
    float* copy = pruned.Get<float>(n);
    for (size_t t = task * kRows; t < std::min(tokens, (task + 1) * kRows); ++t) {
      const float* from = x + t * n;
      if (keep < n) {
        std::copy_n(from, n, copy);
        BestKernels().keep_largest(copy, n, keep);
        from = copy;
      }
      BestKernels().quantize(from, n, t, q);
    }
  });
}

void AddBias(const float* bias, size_t n, size_t width, size_t tokens, float* sums) {
  if (bias == nullptr) return;
  for (size_t t = 0; t < tokens; ++t) {
    for (size_t i = 0; i < width; ++i) sums[t * kTile + i] += bias[n + i];
  }
}

// Codes of several tokens.
Activations PlaceRows(const Nested& w, size_t tokens, Arena& arena) {
  Activations q;
  q.parts = w.Parts();
  q.phased = arena.Take<int8_t>(tokens * q.parts * w.K);
  q.step = arena.Take<float>(tokens * (w.K / kBlock));
  q.sum = arena.Take<float>(tokens * (w.K / kBlock));
  return q;
}

}  // namespace

Mlp::Mlp(const Attributes& attributes, const char* op, size_t keep_port, const Nested& up, const float* up_bias, const Nested& down,
         const float* down_bias)
    : op_(op), keep_in_(attributes, op, keep_port, "keep_in"), keep_mid_(attributes, op, keep_port + 1, "keep_mid"), up_(up), down_(down), up_bias_(up_bias), down_bias_(down_bias), gated_(attributes.Int("gated", 0, 1) != 0),
      activation_(ReadActivation(attributes, op)) {}

Mlp::Keep Mlp::ReadKeep(const Context& context) const {
  return {Kept(op_, "keep_in", keep_in_.Read(context), up_.K), Kept(op_, "keep_mid", keep_mid_.Read(context), Inner())};
}

void Mlp::FetchUp(size_t task, size_t tasks, Keep keep) const {
  if (keep.in < up_.K) return;  // which rows will be read is not known yet
  FetchChannelMajor(up_, {0, up_.K / kBlock}, ShareOf(Inner(), kUpStep, task, tasks), kFetchedBytes);
}

void Mlp::FetchDown(size_t task, size_t tasks, Keep keep) const {
  if (keep.mid < Inner()) return;
  const size_t ranges = tasks / Parts();
  FetchChannelMajor(down_, BlocksOf(task / ranges), ShareOf(up_.K, kUpStep, task % ranges, ranges), kFetchedBytes);
}

size_t Mlp::UpTasks(size_t members) const {
  return TasksOf(Inner(), kUpStep, kMostUpOutputs, members);
}

void Mlp::Up(const TokenInput& x, size_t task, size_t tasks, float* hidden) const {
  const Kernels& kernels = BestKernels();
  const size_t I = Inner();
  const auto [begin, end] = ShareOf(I, kUpStep, task, tasks);
  if (begin == end) return;
  const Range all = {0, up_.K / kBlock};
  Start(up_bias_, begin, end, hidden);
  kernels.row_channel_major(up_, x.Codes(), x.Active(), all, begin, end, hidden);
  if (gated_) {
    Start(up_bias_, I + begin, I + end, hidden);
    kernels.row_channel_major(up_, x.Codes(), x.Active(), all, I + begin, I + end, hidden);
  }
  kernels.activate(activation_, hidden + begin, gated_ ? hidden + I + begin : nullptr, end - begin, hidden + begin);
}

size_t Mlp::Parts() const {
  const size_t blocks = Inner() / kBlock, part = (blocks + kMostParts - 1) / kMostParts;
  return (blocks + part - 1) / part;
}

Range Mlp::BlocksOf(size_t part) const {
  const size_t blocks = Inner() / kBlock, width = (blocks + kMostParts - 1) / kMostParts;
  return {part * width, std::min(blocks, (part + 1) * width)};
}

size_t Mlp::DownTasks(size_t members) const {
  const size_t parts = Parts(), K = up_.K;
  const size_t wanted = std::min((members + parts - 1) / parts, (K + kUpStep - 1) / kUpStep);
  return parts * std::max((K + kMostDownOutputs - 1) / kMostDownOutputs, wanted);
}

void Mlp::Down(const TokenInput& x, size_t task, size_t tasks, float* sums) const {
  const size_t K = up_.K, parts = Parts(), ranges = tasks / parts, part = task / ranges;
  const auto [begin, end] = ShareOf(K, kUpStep, task % ranges, ranges);
  float* to = sums + part * K;
  Start(part == 0 ? down_bias_ : nullptr, begin, end, to);
  BestKernels().row_channel_major(down_, x.Codes(), x.Active(), BlocksOf(part), begin, end, to);
}

void Mlp::AddParts(const float* sums, const float* residual, float* y) const {
  const size_t K = up_.K, parts = Parts();
  for (size_t k = 0; k < K; ++k) {
    float sum = sums[k];
    for (size_t p = 1; p < parts; ++p) sum += sums[p * K + k];
    y[k] = residual != nullptr ? residual[k] + sum : sum;
  }
}

void Mlp::Rows(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  for (size_t t = 0; t < tokens; t += kTokensAChunk) {
    const size_t at = t * up_.K;
    Chunk(context, x + at, std::min(kTokensAChunk, tokens - t), keep, residual != nullptr ? residual + at : nullptr, y + at);
  }
}

void Mlp::Chunk(const Context& context, const float* x, size_t tokens, Keep keep, const float* residual, float* y) const {
  const Kernels& kernels = BestKernels();
  const size_t K = up_.K, I = Inner(), groups = (tokens + kTokensAtOnce - 1) / kTokensAtOnce;
  thread_local Buffer memory;
  Activations first, second;
  float* h = nullptr;
  Place(memory, [&](Arena& arena) {
    first = PlaceRows(up_, tokens, arena);
    second = PlaceRows(down_, tokens, arena);
    h = arena.Take<float>(tokens * I);
  });

  QuantizeAll(context, x, tokens, K, keep.in, first);
  context.ParallelFor((I + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, I - n);
    alignas(64) float gate[kTokensAtOnce * kTile];
    kernels.tile_channel_major(up_, first, start, count, n, gate);
    AddBias(up_bias_, n, width, count, gate);
    if (gated_) {
      alignas(64) float up[kTokensAtOnce * kTile];
      kernels.tile_channel_major(up_, first, start, count, I + n, up);
      AddBias(up_bias_, I + n, width, count, up);
      kernels.activate(activation_, gate, up, count * kTile, gate);
    } else {
      kernels.activate(activation_, gate, nullptr, count * kTile, gate);
    }
    for (size_t t = 0; t < count; ++t) std::copy_n(gate + t * kTile, width, h + (start + t) * I + n);
  });

  QuantizeAll(context, h, tokens, I, keep.mid, second);
  context.ParallelFor((K + kTile - 1) / kTile * groups, [&](size_t task) {
    const size_t n = task / groups * kTile, start = task % groups * kTokensAtOnce;
    const size_t count = std::min(kTokensAtOnce, tokens - start), width = std::min(kTile, K - n);
    alignas(64) float sums[kTokensAtOnce * kTile];
    kernels.tile_channel_major(down_, second, start, count, n, sums);
    AddBias(down_bias_, n, width, count, sums);
    for (size_t t = 0; t < count; ++t) {
      const size_t at = (start + t) * K + n;
      for (size_t i = 0; i < width; ++i) {
        y[at + i] = residual != nullptr ? residual[at + i] + sums[t * kTile + i] : sums[t * kTile + i];
      }
    }
  });
}

}  // namespace sol
