// Contents of the handles of the C interface.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "budget/measure/stored_costs.h"
#include "bundle/bundle.h"
#include "engine/engine_factory.h"
#include "generate/model.h"
#include "sol_rt.h"

struct sol_runtime {
  virtual ~sol_runtime() = default;
  virtual std::shared_ptr<sol_rt::EngineFactory> Open(std::shared_ptr<sol_rt::Bundle> bundle) const = 0;
  // Costs of a model that is loaded for the first time, maybe. Here, as libraries without an engine are to have no code that measures.
  virtual sol_rt::StoredCosts FirstCosts(const std::string& folder, const sol_rt::Model& model, const sol_rt::Progress& progress) const = 0;
  virtual const std::string& version() const = 0;  // of ONNX Runtime
  virtual const std::string& device() const = 0;   // what measured costs depend on
};

namespace sol_rt {
// Throws SOL_ERROR_USAGE for a model without a runtime.
void RequireFactory(const Model& model, const char* function);
}  // namespace sol_rt

struct sol_model {
  std::shared_ptr<sol_rt::Model> model;
  sol_rt::StoredCosts costs;      // of the load
  std::vector<std::string> tags;  // of the action set, in its order
  std::string dense;              // tag of the dense action
};
