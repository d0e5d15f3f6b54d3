// Cost tables that are kept from load to load: one for each bundle and each device that ran it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "budget/cost/cost_table.h"
#include "bundle/bundle.h"
#include "engine/engine_factory.h"

namespace sol_rt {

struct StoredCosts {
  std::shared_ptr<const CostModel> cost;
  std::string table;  // its text; empty where costs are bytes
  std::string file;   // where it lies; empty where it lies nowhere
  std::string note;   // a line for the user: what was done, or why a table was not used or costs are bytes; empty where there is nothing to say
};

// `costs` in the user's folder for sol_rt; empty where the environment names none.
std::string CostsFolder();

// Reads the table of this very bundle and this device. One that `sol-rt profile` made goes first; of those of a first load, which count with `quick`, one whose
// times scattered serves for an hour. Costs are bytes where there is none.
StoredCosts FindCosts(const std::string& folder, const Config& config, const std::string& identity, const std::string& device, bool quick);

// As FindCosts. Without a table it measures what actions cost, if the bundle has measured losses and room for a step, and keeps the table. A folder that cannot
// be written is said in the note. Throws what MeasureCosts throws.
StoredCosts FirstCosts(const std::string& folder, EngineFactory& factory, const Bundle& bundle, int64_t max_context, const Progress& progress);

// Writes a table where FindCosts looks for it, and returns the file's path. Throws SOL_ERROR_WRITE, SOL_ERROR_USAGE without a folder.
std::string KeepCosts(const std::string& folder, const Config& config, const CostTable& table);

}  // namespace sol_rt
