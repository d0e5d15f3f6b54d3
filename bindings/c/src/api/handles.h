// Contents of the handles of the C interface.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "engine/model.h"
#include "engine/ort/runtime.h"
#include "sol_rt.h"

struct sol_runtime {
  std::shared_ptr<const sol_rt::Runtime> runtime;
};

struct sol_model {
  std::shared_ptr<sol_rt::Model> model;
  std::vector<std::string> tags;  // of the action set, in its order
  std::string dense;              // tag of the dense action
};
