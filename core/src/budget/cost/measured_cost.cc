// Milliseconds from a cost table. A KV density that was not measured takes the line of the nearest one that was.
#include <cstdlib>
#include <map>
#include <string>

#include "base/error.h"
#include "base/file/file.h"
#include "budget/cost/cost_table.h"

namespace sol_rt {
namespace {

constexpr double kShortest = 1e-6;  // milliseconds that a step has to take: rates are divided by it, and costs by the dense one

[[noreturn]] void Refuse(const std::string& problem) {
  throw Error(SOL_ERROR_BUNDLE, "cost table: " + problem + "; run `sol-rt profile` again");
}

class MeasuredCost final : public CostModel {
 public:
  MeasuredCost(const Config& config, const CostTable& table)
      : CostModel(config), policy_ms_(table.policy_ms), device_(table.device), tuning_(table.tuning) {
    for (const std::string& key : config.variant_order) {
      const auto row = table.lines.find(key);
      if (row == table.lines.end() || row->second.empty()) Refuse("no variant " + key);
      for (const auto& [density, line] : row->second) lines_[key][density] = line;
    }
    for (const std::string& key : config.variant_order) {
      for (const auto& [density, line] : lines_[key]) {
        if (line.fixed + line.per_token < kShortest) Refuse("a step of " + key + " takes no time");
      }
    }
  }
  const char* Name() const override { return "measured"; }
  bool InMilliseconds() const override { return true; }
  double Policy() const override { return policy_ms_; }
  std::optional<Tuning> TuningFor(int32_t threads) const override {
    return device_.find(", " + std::to_string(threads) + " threads, ") == std::string::npos ? std::nullopt : tuning_;
  }
  CostLine Line(const Action& action) const override {
    const auto row = lines_.find(action.Variant());
    if (row == lines_.end()) UsageFault("cost of " + action.Tag() + ": its variant is not in the bundle");
    const CostLine* nearest = nullptr;
    bool alike = false;
    int distance = 0;
    for (const auto& [density, line] : row->second) {  // rising densities: of two at one distance the lower one stands
      // a step that chooses tokens does other work than one that reads all of them
      const bool same_work = (density == 100) == (action.kv == 100);
      const int away = std::abs(density - action.kv);
      if (nearest == nullptr || (same_work && !alike) || (same_work == alike && away < distance)) {
        nearest = &line;
        alike = same_work;
        distance = away;
      }
    }
    return *nearest;
  }

 private:
  std::map<std::string, std::map<int, CostLine>> lines_;
  double policy_ms_;
  std::string device_;
  std::optional<Tuning> tuning_;
};

}  // namespace

std::shared_ptr<const CostModel> MakeMeasuredCost(const Config& config, const CostTable& table) {
  return std::make_shared<MeasuredCost>(config, table);
}

std::shared_ptr<const CostModel> MeasuredCostOf(const Config& config, const std::string& identity, const std::string& text) {
  const CostTable table = CostTable::FromJson(text);
  if (table.bundle != identity) Refuse("made for another bundle, or before this one changed");
  return MakeMeasuredCost(config, table);
}

std::shared_ptr<const CostModel> ReadMeasuredCost(const Config& config, const std::string& identity, const std::string& file) {
  const std::string text = ReadFile(file, kLargestTable, "a cost table", "give a file that `sol-rt profile` wrote");
  try {
    return MeasuredCostOf(config, identity, text);
  } catch (const Error& error) {
    throw Error(error.code(), file + ": " + error.what());
  }
}

}  // namespace sol_rt
