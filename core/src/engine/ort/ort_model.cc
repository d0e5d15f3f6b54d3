#include "engine/ort/ort_model.h"

#include <algorithm>
#include <fstream>
#include <utility>
#ifndef _WIN32
#include <unistd.h>
#endif

#include "engine/ort/operator_tuning.h"
#include "engine/ort/ort_engine.h"
#include "engine/ort/run/policy_session.h"

namespace sol_rt {
namespace {

// True if a tensor belongs to the 3-bit matrix that screens the LM head.
bool IsOfScreen(const std::string& name) { return name.rfind("embed.screen.", 0) == 0 || name.rfind("head.screen.", 0) == 0; }

}  // namespace

OrtModel::OrtModel(std::shared_ptr<const Runtime> runtime, std::shared_ptr<Bundle> bundle)
    : runtime_(std::move(runtime)), bundle_(std::move(bundle)), weights_(*bundle_), sessions_(runtime_, *bundle_, weights_) {}

std::unique_ptr<Engine> OrtModel::MakeEngine(int64_t max_context) { return std::make_unique<OrtEngine>(shared_from_this(), max_context); }

std::unique_ptr<PolicyRunner> OrtModel::MakePolicyRunner() {
  if (!config().policy) return nullptr;
  const std::string& file = config().policy->file;
  std::call_once(policy_read_, [&] {
    std::string graph = bundle_->Read(file);
    weights_.Check(graph, file);
    policy_ = TwoLayerNetwork::Read(graph, config(), weights_);
    if (!policy_) bundle_->GiveBack(file, std::move(graph));
  });
  if (policy_) return std::make_unique<TwoLayerPolicy>(policy_, *config().policy);
  return std::make_unique<PolicySession>(*this);
}

Tuning OrtModel::tuning() const { return CurrentTuning(); }

void OrtModel::SetTuning(const Tuning& tuning, bool keep_copies) { ApplyTuning(tuning, keep_copies); }

// Copies are of the 4-bit matrices, with scales and zero points, and of the LM head's screen. Half of the machine's memory counts as free if the system reports
// none, and at most half of a container's. On Windows none counts.
bool OrtModel::RoomForCopies() const {
  int64_t bytes = 0, screen = 0, free = 0, most = 0;
  for (const auto& [name, entry] : config().tensors) {
    if (entry.dtype == "uint4") bytes += entry.bytes;
    if (entry.dtype == "uint8" && IsOfScreen(name)) screen += entry.bytes;
  }
  std::ifstream machine("/proc/meminfo"), container("/sys/fs/cgroup/memory.max");
  std::string word;
  while (machine >> word && word != "MemAvailable:") continue;
  if (machine >> free) {
    free *= 1024;
  } else {
#ifndef _WIN32
    free = int64_t{sysconf(_SC_PHYS_PAGES)} * sysconf(_SC_PAGESIZE) / 2;
#endif
  }
  if (container >> most) free = std::min(free, most / 2);
  return (bytes * 19 / 16 + screen) * 4 <= free;
}

}  // namespace sol_rt
