#include "base/philox.h"

#include <algorithm>

namespace sol_rt {
namespace {

constexpr int kRounds = 10;
constexpr size_t kLanes = 64;  // blocks side by side, which the compiler turns into vectors

// `kCount` counters, word by word, so that every round is a loop over neighbours in memory.
template <size_t kCount>
struct Counters {
  uint32_t a[kCount], b[kCount], c[kCount], d[kCount];

  void Mix(std::array<uint32_t, 2> key) {
    for (int round = 0; round < kRounds; ++round) {
      for (size_t i = 0; i < kCount; ++i) {
        const uint64_t first = static_cast<uint64_t>(a[i]) * 0xd2511f53u, second = static_cast<uint64_t>(c[i]) * 0xcd9e8d57u;
        a[i] = static_cast<uint32_t>(second >> 32) ^ b[i] ^ key[0];
        b[i] = static_cast<uint32_t>(second);
        c[i] = static_cast<uint32_t>(first >> 32) ^ d[i] ^ key[1];
        d[i] = static_cast<uint32_t>(first);
      }
      key[0] += 0x9e3779b9u;
      key[1] += 0xbb67ae85u;
    }
  }
};

}  // namespace

std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  Counters<1> one{{counter[0]}, {counter[1]}, {counter[2]}, {counter[3]}};
  one.Mix(key);
  return {one.a[0], one.b[0], one.c[0], one.d[0]};
}

uint32_t RandomWords::At(int64_t position, uint32_t index) const {
  return Philox({index / 4, static_cast<uint32_t>(position), stream_, 0}, key_)[index % 4];
}

void RandomWords::Fill(int64_t position, size_t first, size_t count, uint32_t* words) const {
  Counters<kLanes> many;
  for (size_t done = 0; done < count; done += 4 * kLanes) {
    for (size_t i = 0; i < kLanes; ++i) {
      many.a[i] = static_cast<uint32_t>((first + done) / 4 + i);
      many.b[i] = static_cast<uint32_t>(position);
      many.c[i] = stream_;
      many.d[i] = 0;
    }
    many.Mix(key_);
    uint32_t mixed[4 * kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      mixed[4 * i] = many.a[i];
      mixed[4 * i + 1] = many.b[i];
      mixed[4 * i + 2] = many.c[i];
      mixed[4 * i + 3] = many.d[i];
    }
    std::copy(mixed, mixed + std::min(count - done, 4 * kLanes), words + done);
  }
}

}  // namespace sol_rt
