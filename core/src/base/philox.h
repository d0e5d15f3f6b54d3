// Random numbers from a counter: Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", 2011). A number depends on
// seed, stream, position and index alone: no state is kept, and the order of the draws has no effect (docs/reference/decode-loop.md section 5).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sol_rt {

// Philox4x32-10 of a counter of four words under a key of two, the lower first.
std::array<uint32_t, 4> Philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key);

// A word as a number between 0 and 1; never 0 and never 1.
inline double Uniform(uint32_t word) { return (static_cast<double>(word) + 0.5) * (1.0 / 4294967296.0); }

class RandomWords {
 public:
  enum class Stream : uint32_t { kTokens = 0, kSchedule = 1 };

  RandomWords(uint64_t seed, Stream stream) : key_{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)}, stream_(static_cast<uint32_t>(stream)) {}

  // `position`: index of a token in its sequence, prompt included.
  uint32_t At(int64_t position, uint32_t index) const;
  // Fills `words` with `count` words of a position from index `first` on, a multiple of 4; faster than one after the other.
  void Fill(int64_t position, size_t first, size_t count, uint32_t* words) const;

 private:
  std::array<uint32_t, 2> key_;
  uint32_t stream_;
};

}  // namespace sol_rt
