#include "generate/gumbel.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

namespace sol_rt {
namespace {

constexpr double kSqrtHalf = 0.7071067811865476, kLn2 = 0.6931471805599453;
constexpr size_t kChunk = 256;  // tokens at a time

// Natural logarithm of a positive normal number.
double PortableLog(double value) {
  int exponent;
  double mantissa = std::frexp(value, &exponent);
  if (mantissa < kSqrtHalf) {
    mantissa += mantissa;
    --exponent;
  }
  const double share = (mantissa - 1.0) / (mantissa + 1.0);  // log(mantissa) = 2 atanh(share), |share| < 0.172
  const double square = share * share, twice = share + share;
  double series = 0.0;
  for (int odd = 19; odd > 1; odd -= 2) series = square * (series + 1.0 / odd);
  return exponent * kLn2 + (twice + twice * series);
}

// An upper bound of Gumbel(word), in a tenth of its time: -log(-log(u)) <= -log(1 - u), and the bits of a float grow as its logarithm does, in a line
// between powers of two.
float UpperBound(uint32_t word) {
  const float rest = static_cast<float>(static_cast<int32_t>(~word >> 8));  // 2^24 (1 - u), rounded down
  int32_t bits;
  std::memcpy(&bits, &rest, sizeof bits);
  return static_cast<float>(151.001 * kLn2) - static_cast<float>(bits) * static_cast<float>(kLn2 / (1 << 23));
}

// True if the noise of any of `kChunk` tokens may lift its score to `least`.
bool AnyReaches(const float* scores, const uint32_t* words, float least) {
  int reaches = 0;
  for (size_t i = 0; i < kChunk; ++i) reaches |= scores[i] + UpperBound(words[i]) >= least ? 1 : 0;
  return reaches != 0;
}

}  // namespace

double Gumbel(uint32_t word) { return -PortableLog(-PortableLog(Uniform(word))); }

int32_t NoisyArgmax(const RandomWords& random, int64_t position, const std::vector<int32_t>& tokens, const std::vector<float>& scores) {
  const size_t size = scores.size();
  const auto token = [&](size_t index) { return tokens.empty() ? static_cast<int32_t>(index) : tokens[index]; };
  size_t best = 0;
  double largest = -std::numeric_limits<double>::infinity();
  uint32_t words[kChunk];
  for (size_t first = 0; first < size; first += kChunk) {
    const size_t count = std::min(kChunk, size - first);
    if (tokens.empty()) {
      random.Fill(position, first, count, words);
    } else {
      for (size_t i = 0; i < count; ++i) words[i] = random.At(position, static_cast<uint32_t>(tokens[first + i]));
    }
    // Most candidates can't win, whatever their noise is: bounds are cheaper than logarithms.
    if (count == kChunk && !AnyReaches(&scores[first], words, static_cast<float>(largest))) continue;
    for (size_t i = 0; i < count; ++i) {
      const float score = scores[first + i];
      if (score + UpperBound(words[i]) < largest) continue;
      const double sum = static_cast<double>(score) + Gumbel(words[i]);
      if (sum < largest || (sum == largest && token(first + i) > token(best))) continue;
      largest = sum;
      best = first + i;
    }
  }
  return token(best);
}

}  // namespace sol_rt
