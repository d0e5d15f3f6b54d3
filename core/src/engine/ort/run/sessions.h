// The ONNX Runtime sessions of a bundle: one for each graph file, made when first used, on the mapped weights.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "bundle/bundle.h"
#include "bundle/weights.h"
#include "engine/ort/run/signature.h"
#include "engine/ort/runtime.h"

namespace sol_rt {

class Sessions {
 public:
  // `bundle` and `weights` must outlive the sessions.
  Sessions(std::shared_ptr<const Runtime> runtime, Bundle& bundle, const Weights& weights);

  // The session of a graph file, for any thread, for the life of this object. Throws SOL_ERROR_BUNDLE, SOL_ERROR_RUNTIME.
  OrtSession* Get(const std::string& file, const Signature& signature);

 private:
  Owned<OrtSession> Make(const std::string& file);
  const OrtValue* Initializer(const std::string& name);
  bool HasWideLayers(const std::string& file) const;

  std::shared_ptr<const Runtime> runtime_;
  Bundle& bundle_;
  const Weights& weights_;
  std::mutex mutex_;
  std::map<std::string, Owned<OrtValue>> initializers_;  // sessions read them: they go last
  std::map<std::string, Owned<OrtSession>> sessions_;
};

}  // namespace sol_rt
