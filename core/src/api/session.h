// Contents of a `sol_session`, and the threads that may use it when.
#pragma once

#include <atomic>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "api/handles.h"
#include "engine/engine.h"
#include "engine/host_engine.h"
#include "engine/host_policy.h"
#include "engine/policy_runner.h"
#include "generate/decoder.h"
#include "generate/generation.h"
#include "generate/live_dial.h"
#include "generate/model.h"

struct sol_session {
  explicit sol_session(std::shared_ptr<sol_rt::Model> shared);                         // on an engine of the model's factory
  sol_session(std::shared_ptr<sol_rt::Model> shared, const sol_host_engine& callbacks);  // on the host's engine

  // True once for each request to cancel.
  bool TakeCancel() { return cancelled.exchange(false); }

  const std::shared_ptr<sol_rt::Model> model;
  sol_rt::HostEngine* host = nullptr;  // the engine, where it is the host's
  const std::unique_ptr<sol_rt::Engine> engine;
  std::unique_ptr<sol_rt::PolicyRunner> policy;  // made for the first generation; null where the bundle has none
  sol_rt::HostPolicy* host_policy = nullptr;     // the same, where the host runs its graph
  sol_rt::LiveDial live;
  sol_rt::DraftPace pace;
  sol_rt::DraftActions draft_actions;
  std::unique_ptr<sol_rt::Generation> generation;  // the running or last one
  std::string schedule, cost_model;  // what the last `sol_result` points to
  std::string text, action;          // what the last `sol_token` points to, as do the two below
  std::vector<int32_t> top_tokens;
  std::vector<double> top_logprobs;
  bool step_begun = false;  // between `sol_session_begin_step` and `sol_session_end_step`
  std::unique_ptr<sol_rt::Decoder> decoder;  // of the last plan
  std::vector<std::string> scored_tags;      // what the last `sol_scores` points to, as do those below
  std::vector<const char*> scored_actions;
  std::vector<double> scored_costs;

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

// Says of a session that the host's callback runs in this thread, which may then ask for what a session holds.
class InCallback {
 public:
  explicit InCallback(sol_session& session) : session_(session) { session_.in_callback = std::this_thread::get_id(); }
  ~InCallback() { session_.in_callback = std::thread::id(); }
  InCallback(const InCallback&) = delete;
  InCallback& operator=(const InCallback&) = delete;

 private:
  sol_session& session_;
};

// The run that a host's engine is asked for. `action` is the tag; the result points into both.
sol_run RunOf(const HostRun& run, const std::string& action);

// The policy's runner of the session, made when first asked for. Null where the bundle has none.
PolicyRunner* PolicyOf(sol_session& session);

// Tokens in the cache, without drafts that the text has not confirmed.
size_t HeldBy(const sol_session& session);

// Ends a running generation. Throws SOL_ERROR_WRITE where its trace cannot be completed.
void CloseGeneration(sol_session& session);
// The same, and forgets a request to cancel it.
void EndGeneration(sol_session& session);

}  // namespace sol_rt
