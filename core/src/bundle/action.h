// Actions: the ways to run a decode step. An action is written `k030-s050-q4`.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace sol_rt {

constexpr int kThreeBits = 3;  // codes and tables of its own, beside the nested weights of the other levels
constexpr int kMixedBits = 5;  // matrices of 4, 6 or 8 bits each; tags write `qmix`

struct Action {
  int kv = 100;        // KV density in hundredths, 1 to 100
  int channels = 100;  // channel density in hundredths, 1 to 100
  int bits = 8;        // weight bits, or kMixedBits

  double kv_density() const { return kv / 100.0; }
  double channel_density() const { return channels / 100.0; }
  std::string Tag() const;      // `k030-s050-q4`
  std::string Variant() const;  // `s050-q4`
  bool SharesRead(const Action& other) const { return channels == other.channels && bits == other.bits; }  // of the weights, in a round

  // Old KV pages that a step reads after `context` tokens: the graph's input `kv_pages`.
  int64_t Pages(int64_t context, int64_t page_size) const;

  // Throws SOL_ERROR_USAGE for a tag that is malformed or out of range.
  static Action Parse(std::string_view tag);

  bool operator==(const Action& other) const { return kv == other.kv && channels == other.channels && bits == other.bits; }
  bool operator<(const Action& other) const {
    return kv != other.kv ? kv < other.kv : channels != other.channels ? channels < other.channels : bits < other.bits;
  }
};

}  // namespace sol_rt
