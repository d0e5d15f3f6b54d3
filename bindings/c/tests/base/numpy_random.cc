// Prints random numbers for runtime_tests/core/test_native_random.py. Arguments: seed, how many numbers. The first line is the first word of the
// SeedSequence.
#include "base/numpy_random.h"

#include <cstdio>
#include <cstdlib>

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const uint64_t seed = std::strtoull(argv[1], nullptr, 10);
  uint32_t word;
  sol_rt::SeedSequence(seed).Generate(&word, 1);
  std::printf("%lu\n", static_cast<unsigned long>(word));
  sol_rt::NumpyRandom random(seed);
  for (long count = std::atol(argv[2]); count > 0; --count) std::printf("%.17g\n", random.Random());
}
