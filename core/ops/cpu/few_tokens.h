// How many tokens of one call get the bits that each has in a call of its own: the next token of several answers, a guess of the next ones.
#pragma once

#include <cstddef>

namespace sol {

constexpr size_t kFewTokens = 16;
constexpr size_t kFewSums = 16384;  // of a product's task, of all tokens: they stay in the core's own cache

}  // namespace sol
