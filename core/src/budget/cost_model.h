// Cost of a decode step: bytes, or milliseconds measured on this device (docs/reference/bundle-details.md section 4, docs/reference/decode-loop.md section 7).
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bundle/action.h"
#include "bundle/config/config.h"
#include "engine/tuning.h"

namespace sol_rt {

constexpr int64_t kReferenceContext = 512;  // tokens, at which costs are compared where no run says which context it has

// cost = fixed + per_token * tokens read + per_page * pages scored.
struct CostLine {
  double fixed, per_token, per_page;
};

// Reads of a decode step, sums over the layers that attend.
struct CacheReads {
  int64_t tokens, pages;  // tokens of the cache, and pages whose key codes are scored
};

// Layers that read alike.
struct LayerKind {
  int64_t window;  // tokens that they attend to; 0: all
  bool dense;      // they read all of these under every action
  int64_t layers;
};

// Reads of layers of which some have a window. `held` counts the tokens in the cache with the new one, `old_pages` the pages before the newest, and `pages` the
// old pages that a layer reads if it attends to all tokens.
CacheReads ReadsByWindow(const std::vector<LayerKind>& kinds, int64_t page_size, int64_t sinks, int64_t held, int64_t old_pages, int64_t pages);

// Costs do not change after the model is made, so threads may share it.
class CostModel {
 public:
  explicit CostModel(const Config& config);
  virtual ~CostModel() = default;
  virtual const char* Name() const = 0;  // `bytes` or `measured`
  virtual bool InMilliseconds() const = 0;
  virtual double Policy() const = 0;  // one run of the policy; 0 if there is none
  // The operators' settings under which costs were measured on so many threads; none if on another number, or not measured with native operators.
  virtual std::optional<Tuning> TuningFor(int32_t) const { return std::nullopt; }
  // Throws SOL_ERROR_USAGE for an action whose variant the bundle lacks.
  virtual CostLine Line(const Action& action) const = 0;

  // Cost of a decode step without the policy's run; `context` is the number of tokens in the cache before it.
  double Step(const Action& action, int64_t context) const;
  // Means over the layers that attend.
  struct MeanReads {
    double tokens, pages;
  };
  MeanReads Reads(const Action& action, int64_t context) const;

  const Action& dense() const { return dense_; }
  int64_t page_size() const { return page_size_; }
  int64_t sinks() const { return sinks_; }
  int64_t layers() const { return layers_; }  // those that attend
  int64_t dense_layers() const { return dense_layers_; }
  const std::vector<LayerKind>& kinds() const { return kinds_; }  // empty if no layer has a window

 private:
  Action dense_;
  int64_t page_size_, sinks_, layers_, dense_layers_;
  std::vector<LayerKind> kinds_;
};

std::shared_ptr<const CostModel> MakeBytesCost(const Config& config);
// Costs of the text of a table (`sol_rt.cost_table`). Throws SOL_ERROR_BUNDLE for a text that is no table, or another bundle's.
std::shared_ptr<const CostModel> MeasuredCostOf(const Config& config, const std::string& identity, const std::string& text);
// Reads a table (`sol_rt.cost_table`). `identity` is the bundle's. Throws SOL_ERROR_BUNDLE for a file that is missing, damaged or of another bundle.
std::shared_ptr<const CostModel> ReadMeasuredCost(const Config& config, const std::string& identity, const std::string& file);

}  // namespace sol_rt
