// Makes the engines of a model's sessions, and the runners of its policy: the interface that the rooms above know. `OrtModel` makes them on ONNX Runtime.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "engine/engine.h"
#include "engine/policy_runner.h"
#include "engine/tuning.h"

namespace sol_rt {

// For any number of threads at once.
class EngineFactory {
 public:
  virtual ~EngineFactory() = default;
  virtual std::unique_ptr<Engine> MakeEngine(int64_t max_context) = 0;
  // Null if the bundle has no policy. The factory must outlive the runner.
  virtual std::unique_ptr<PolicyRunner> MakePolicyRunner() = 0;

  virtual bool native() const = 0;           // true if native operators run
  virtual int32_t threads() const = 0;
  virtual uint64_t mapped_bytes() const = 0;  // of the weights file
  virtual std::string Device() const = 0;    // processor, threads and libraries, for a cost table

  // Settings with which the operators of this process run from now on. Without native operators `SetTuning` does nothing. Copies that are not used are freed,
  // or with `keep_copies` stay for settings that follow.
  virtual Tuning tuning() const = 0;
  virtual void SetTuning(const Tuning& tuning, bool keep_copies = false) = 0;
  virtual bool RoomForCopies() const = 0;  // true if copies of matrices would take a quarter of the free memory at most
};

}  // namespace sol_rt
