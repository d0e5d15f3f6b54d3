// What a decode step costs: bytes, or milliseconds measured on this device (docs/bundle.md section 4, docs/decode-loop.md section 7).
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "bundle/action.h"
#include "bundle/config.h"

namespace sol_rt {

class CostModel {
 public:
  virtual ~CostModel() = default;
  virtual const char* Name() const = 0;  // `bytes` or `calibrated`
  virtual bool InMilliseconds() const = 0;
  virtual double Step(const Action& action, int64_t context) const = 0;  // without the policy's run
  virtual double Policy() const = 0;                                     // one run of the policy; 0 if there is none
};

std::shared_ptr<const CostModel> MakeBytesCost(const Config& config);
// Reads a table (`sol_rt.calibration`). `identity` is the bundle's. Throws SOL_ERROR_BUNDLE for a file that is damaged or of another bundle.
std::shared_ptr<const CostModel> ReadCalibratedCost(const Config& config, const std::string& identity, const std::string& file);

}  // namespace sol_rt
