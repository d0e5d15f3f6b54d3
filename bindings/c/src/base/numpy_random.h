// The random numbers of NumPy's `default_rng(seed)`, so that the same seed gives the same tokens in every host (docs/reference/decode-loop.md section 5).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

namespace sol_rt {

// NumPy's SeedSequence without a spawn key: spreads a seed over as many words as a generator needs.
class SeedSequence {
 public:
  explicit SeedSequence(uint64_t seed);
  // `generate_state(count)`; equal calls give equal words.
  void Generate(uint32_t* words, size_t count) const;

 private:
  std::array<uint32_t, 4> pool_;
};

// NumPy's PCG64: a linear congruential generator of 128 bits, whose output folds the state and rotates it.
class NumpyRandom {
 public:
  explicit NumpyRandom(uint64_t seed);
  uint64_t NextUint64();
  double Random();  // at least 0, less than 1: `Generator.random()`

 private:
  struct Wide {  // 128 bits; not every compiler has such a type
    uint64_t high, low;
  };
  static Wide Sum(Wide a, Wide b);
  static Wide Product(Wide a, Wide b);  // modulo 2^128
  void Step();

  Wide state_{0, 0}, increment_;
};

}  // namespace sol_rt
