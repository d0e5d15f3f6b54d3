// The Gumbel-max trick: the token with the largest `score + noise` is a draw from softmax(scores), if the noise of each token is a Gumbel number of its own.
// The noise of a token depends on seed, position and token id alone (docs/reference/decode-loop.md, section 5).
#pragma once

#include <cstdint>
#include <vector>

#include "base/philox.h"

namespace sol_rt {

// -log(-log(u)) with u = (word + 0.5) / 2^32; from -3.2 to 22.9. The logarithms are written out in additions, multiplications and divisions, which every
// host rounds alike; libraries differ in the last bit of theirs.
double Gumbel(uint32_t word);

// Draws a token from softmax(scores); of equal sums the smallest id.
//   random: of the stream of tokens.
//   position: index that the token will have in its sequence, prompt included.
//   tokens: the candidates, [n]; empty stands for all.
//   scores: their logits after the temperature, less the largest, [n].
int32_t NoisyArgmax(const RandomWords& random, int64_t position, const std::vector<int32_t>& tokens, const std::vector<float>& scores);

}  // namespace sol_rt
