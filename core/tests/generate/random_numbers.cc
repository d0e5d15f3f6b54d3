// Prints random numbers for runtime_tests/core/test_native_random.py. Each line of standard input asks for some:
//   philox A B C D K M: the words of a counter under a key, all in hexadecimal
//   tokens SEED POSITION COUNT FIRST: words and Gumbel numbers of the first COUNT tokens, then those of the tokens from FIRST on, one by one
#include "generate/gumbel.h"

#include <cstdio>
#include <iostream>
#include <string>
#include <vector>

int main() {
  for (std::string kind; std::cin >> kind;) {
    if (kind == "philox") {
      uint32_t words[6];
      for (uint32_t& word : words) std::cin >> std::hex >> word;
      const auto mixed = sol_rt::Philox({words[0], words[1], words[2], words[3]}, {words[4], words[5]});
      for (const uint32_t word : mixed) std::printf("%08lx ", static_cast<unsigned long>(word));
    } else {
      uint64_t seed;
      int64_t position;
      uint32_t count, first;
      std::cin >> std::dec >> seed >> position >> count >> first;
      const sol_rt::RandomWords random(seed, sol_rt::RandomWords::Stream::kTokens);
      std::vector<uint32_t> words(count);
      random.Fill(position, 0, count, words.data());
      for (uint32_t token = first; token < count; ++token) words.push_back(random.At(position, token));
      for (const uint32_t word : words) std::printf("%lu %a ", static_cast<unsigned long>(word), sol_rt::Gumbel(word));
    }
    std::putchar('\n');
  }
}
