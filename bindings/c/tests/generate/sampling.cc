// Draws tokens for runtime_tests/core/test_native_sampling.py. Standard input has cases: a line of JSON with `settings` (of generation_config.json), `vocab`,
// `history` and `steps`, then the logits, float32 [steps, vocab]. A line for each case is printed: its tokens, or an error.
#include "generate/sampling.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <iostream>
#include <string>

#include "base/error.h"

namespace {

sol_rt::Distribution MakeDistribution(const std::vector<float>& logits) {
  sol_rt::Distribution distribution;
  distribution.logits = logits.data();
  distribution.size = static_cast<int32_t>(logits.size());
  distribution.top = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
  distribution.total = 0.0f;
  for (const float logit : logits) distribution.total += std::exp(logit - logits[static_cast<size_t>(distribution.top)]);
  return distribution;
}

}  // namespace

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    const nlohmann::json request = nlohmann::json::parse(line);
    std::vector<int32_t> history = request.at("history").get<std::vector<int32_t>>();
    const int steps = request.at("steps").get<int>();
    std::vector<float> logits(request.at("vocab").get<size_t>());
    std::string answer;
    try {
      sol_rt::GenerationConfig config;
      for (const auto& [name, value] : request.at("settings").items()) config.Set(name, value);
      sol_rt::Sampler sampler(config, static_cast<int32_t>(logits.size()));
      for (int step = 0; step < steps; ++step) {
        std::cin.read(reinterpret_cast<char*>(logits.data()), static_cast<std::streamsize>(logits.size() * sizeof(float)));
        const sol_rt::Sampler::Picked picked = sampler.Sample(MakeDistribution(logits), history);
        history.push_back(picked.token);
        answer += std::to_string(picked.token) + " ";
      }
    } catch (const sol_rt::Error& error) {
      answer = error.what();
      std::cin.ignore(static_cast<std::streamsize>(logits.size() * sizeof(float)) * steps);
    }
    std::puts(answer.c_str());
  }
}
