// Contents of a `sol_session`, and the threads that may use it when.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "api/handles.h"
#include "engine/engine.h"
#include "engine/model.h"
#include "engine/policy_runner.h"
#include "generate/generation.h"
#include "generate/live_dial.h"

struct sol_session {
  explicit sol_session(std::shared_ptr<sol_rt::Model> shared);

  const std::shared_ptr<sol_rt::Model> model;
  sol_rt::Engine engine;
  std::unique_ptr<sol_rt::PolicyRunner> policy;  // made for the first generation; null where the bundle has none
  sol_rt::LiveDial live;
  std::unique_ptr<sol_rt::Generation> generation;  // the running or last one
  std::string schedule, cost_model;  // what the last `sol_result` points to
  std::string text, action;          // what the last `sol_token` points to, as do the two below
  std::vector<int32_t> top_tokens;
  std::vector<double> top_logprobs;

  std::atomic<bool> cancelled{false};
  std::atomic<bool> in_call{false};
  std::atomic<std::thread::id> in_callback{};  // the thread in which the host's callback runs
};

namespace sol_rt {

// One call's exclusive use of a session. Throws SOL_ERROR_USAGE for NULL, and SOL_ERROR_BUSY while another call runs.
class Turn {
 public:
  // A call that only reads may also come from inside a callback of the call that runs.
  Turn(const sol_session* session, const char* function, bool reads = false);
  ~Turn();
  Turn(const Turn&) = delete;
  Turn& operator=(const Turn&) = delete;

 private:
  std::atomic<bool>* in_call_ = nullptr;
};

// Ends a running generation. Throws SOL_ERROR_WRITE where its trace cannot be completed.
void CloseGeneration(sol_session& session);
// The same, and forgets a request to cancel it.
void EndGeneration(sol_session& session);

}  // namespace sol_rt
