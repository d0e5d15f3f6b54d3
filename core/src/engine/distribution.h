// The distribution of the next token: the softmax sums of a step's logits, computed once for all who need them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace sol_rt {

// Views logits that the next step overwrites.
struct Distribution {
  const float* logits = nullptr;
  int32_t size = 0;
  int32_t top = -1;    // the likeliest token, the first of several; -1 if a logit is not finite
  float total = 1.0f;  // sum of exp(x - largest)
  float moment = 0.0f;  // sum of exp(x - largest) (x - largest)
  float second = 0.0f;  // the second largest logit; the lowest float in a vocabulary of one

  bool finite() const { return top >= 0; }
  double TopProbability() const;
  double Margin() const;   // probability of the likeliest token minus that of the second likeliest; 1 in a vocabulary of one
  double Entropy() const;  // nats
  double LogSum() const;
  double LogProbability(int32_t token) const;
  // The `count` likeliest tokens with their log-probabilities; among equals, lower ids come first.
  std::vector<std::pair<int32_t, double>> Likeliest(int32_t count) const;
};

// By the operators' SIMD kernels where they are built in.
Distribution MakeDistribution(const float* logits, int32_t size);

}  // namespace sol_rt
