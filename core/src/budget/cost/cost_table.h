// The table of milliseconds that `sol-rt profile` measured: its file, and the cost model that it gives.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "budget/cost_model.h"
#include "engine/tuning.h"

namespace sol_rt {

constexpr uint64_t kLargestTable = 1 << 24;  // bytes of a file; tables take a few thousand

struct CostTable {
  struct Line : CostLine {
    double error = 0.0;  // root mean square of the fit's relative residuals
  };
  std::string bundle, device, created;  // identity of the bundle, the device in words, ISO 8601
  double policy_ms = 0.0;
  std::map<std::string, std::map<int, Line>> lines;  // by variant, then by KV density in hundredths
  bool quick = false;                                // measured at one short context
  bool steady = true;                                // whether the times agreed from round to round
  std::optional<Tuning> tuning;                      // of the operators, under which the times were taken; none without native operators

  std::string ToJson() const;
  // Throws SOL_ERROR_BUNDLE for a text that ToJson did not write.
  static CostTable FromJson(const std::string& text);
};

// Throws SOL_ERROR_BUNDLE if the table lacks a variant of the bundle, or says that a step takes no time.
std::shared_ptr<const CostModel> MakeMeasuredCost(const Config& config, const CostTable& table);

}  // namespace sol_rt
