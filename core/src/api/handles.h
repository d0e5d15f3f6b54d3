// Contents of the handles of the C interface.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "engine/engine_factory.h"
#include "generate/model.h"
#include "sol_rt.h"

struct sol_runtime {
  virtual ~sol_runtime() = default;
  virtual std::shared_ptr<sol_rt::EngineFactory> Open(std::shared_ptr<sol_rt::Bundle> bundle) const = 0;
  virtual const std::string& version() const = 0;  // of ONNX Runtime
};

namespace sol_rt {
// Throws SOL_ERROR_USAGE for a model without a runtime.
void RequireFactory(const Model& model, const char* function);
}  // namespace sol_rt

struct sol_model {
  std::shared_ptr<sol_rt::Model> model;
  std::vector<std::string> tags;  // of the action set, in its order
  std::string dense;              // tag of the dense action
};
