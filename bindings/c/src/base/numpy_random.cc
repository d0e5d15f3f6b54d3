// SeedSequence and PCG64 as NumPy defines them (NEP 19; O'Neill, "PCG: A Family of Simple Fast Space-Efficient Statistically Good Algorithms").
#include "base/numpy_random.h"

namespace sol_rt {
namespace {

// A hash whose multiplier changes with every value.
class Hash {
 public:
  Hash(uint32_t start, uint32_t factor) : constant_(start), factor_(factor) {}
  uint32_t operator()(uint32_t value) {
    value ^= constant_;
    constant_ *= factor_;
    value *= constant_;
    return value ^ value >> 16;
  }

 private:
  uint32_t constant_, factor_;
};

uint32_t Mix(uint32_t a, uint32_t b) {
  const uint32_t mixed = 0xca01f9ddu * a - 0x4973f715u * b;
  return mixed ^ mixed >> 16;
}

}  // namespace

SeedSequence::SeedSequence(uint64_t seed) {
  Hash hash(0x43b0d7e5u, 0x931e8875u);
  pool_ = {hash(static_cast<uint32_t>(seed)), 0, 0, 0};
  pool_[1] = hash(static_cast<uint32_t>(seed >> 32));
  pool_[2] = hash(0);
  pool_[3] = hash(0);
  for (size_t from = 0; from < pool_.size(); ++from) {
    for (size_t to = 0; to < pool_.size(); ++to) {
      if (from != to) pool_[to] = Mix(pool_[to], hash(pool_[from]));
    }
  }
}

void SeedSequence::Generate(uint32_t* words, size_t count) const {
  Hash hash(0x8b51f9ddu, 0x58f38dedu);
  for (size_t index = 0; index < count; ++index) words[index] = hash(pool_[index % pool_.size()]);
}

NumpyRandom::NumpyRandom(uint64_t seed) {
  uint32_t words[8];
  SeedSequence(seed).Generate(words, 8);
  const auto pair = [&words](int index) { return static_cast<uint64_t>(words[2 * index + 1]) << 32 | words[2 * index]; };
  increment_ = {pair(2) << 1 | pair(3) >> 63, pair(3) << 1 | 1};
  Step();
  state_ = Sum(state_, {pair(0), pair(1)});
  Step();
}

uint64_t NumpyRandom::NextUint64() {
  Step();
  const uint64_t folded = state_.high ^ state_.low;
  const unsigned turn = static_cast<unsigned>(state_.high >> 58);
  return folded >> turn | folded << ((64 - turn) & 63);
}

double NumpyRandom::Random() { return static_cast<double>(NextUint64() >> 11) * (1.0 / 9007199254740992.0); }

NumpyRandom::Wide NumpyRandom::Sum(Wide a, Wide b) {
  const uint64_t low = a.low + b.low;
  return {a.high + b.high + (low < a.low ? 1 : 0), low};
}

NumpyRandom::Wide NumpyRandom::Product(Wide a, Wide b) {
  const uint64_t a0 = a.low & 0xffffffffu, a1 = a.low >> 32, b0 = b.low & 0xffffffffu, b1 = b.low >> 32;
  const uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (middle & 0xffffffffu);
  const uint64_t carried = a1 * b1 + (middle >> 32) + (other >> 32);
  return {carried + a.high * b.low + a.low * b.high, other << 32 | (low & 0xffffffffu)};
}

void NumpyRandom::Step() {
  constexpr Wide kMultiplier{0x2360ed051fc65da4u, 0x4385df649fccf645u};
  state_ = Sum(Product(state_, kMultiplier), increment_);
}

}  // namespace sol_rt
