// Times a kernel on the processor that runs it.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdio>

// Prints a row of a table: weights times tokens a nanosecond, in the best of some rounds of at least 20 ms.
template <class F>
void TimeKernel(const char* kernel, int bits, double products, const F& call) {
  using Clock = std::chrono::steady_clock;
  double best = 1e300;
  for (int round = 0; round < 7; ++round) {
    const auto begin = Clock::now();
    double seconds = 0;
    long calls = 0;
    while (seconds < 0.02) {
      call();
      ++calls;
      seconds = std::chrono::duration<double>(Clock::now() - begin).count();
    }
    best = std::min(best, seconds / static_cast<double>(calls));
  }
  std::printf("| %s | %d | %.2f |\n", kernel, bits, products / best * 1e-9);
}
