// Sessions of the C interface: their cache, and their files.
#include "api/session.h"

#include <algorithm>
#include <fstream>

#include "api/border.h"
#include "base/error.h"
#include "base/file/atomic_file.h"
#include "base/file/file.h"

using sol_rt::EndGeneration;
using sol_rt::FillArray;
using sol_rt::Guard;
using sol_rt::HeldBy;
using sol_rt::RequireHandle;
using sol_rt::RequirePointer;
using sol_rt::Turn;

namespace {

sol_rt::HostCalls HostCallsOf(sol_session& session, const sol_host_engine& callbacks) {
  sol_rt::HostCalls calls;
  if (callbacks.forward != nullptr) {
    calls.forward = [&session, callbacks](const sol_rt::HostRun& run, float* logits, float* hidden) {
      const std::string action = run.action.Tag();
      const sol_run given = sol_rt::RunOf(run, action);
      const sol_rt::InCallback mark(session);
      if (callbacks.forward(callbacks.user, &given, logits, hidden) != 0) {
        throw sol_rt::Error(SOL_ERROR_HOST, "the host's engine could not run " + std::to_string(given.num_tokens) + " tokens under " + action);
      }
    };
  }
  if (callbacks.held != nullptr) {
    calls.held = [&session, callbacks](int64_t length) {
      const sol_rt::InCallback mark(session);
      return static_cast<int64_t>(callbacks.held(callbacks.user, static_cast<size_t>(length)));
    };
  }
  return calls;
}

}  // namespace

sol_session::sol_session(std::shared_ptr<sol_rt::Model> shared) : model(std::move(shared)), engine(model->factory()->MakeEngine(model->max_context())) {}

sol_session::sol_session(std::shared_ptr<sol_rt::Model> shared, const sol_host_engine& callbacks)
    : model(std::move(shared)),
      host(new sol_rt::HostEngine(model->config(), model->bundle().path(), model->max_context(), HostCallsOf(*this, callbacks))),
      engine(host) {}

namespace sol_rt {

Turn::Turn(const sol_session* session, const char* function, bool reads) {
  RequireHandle(session, function);
  std::atomic<bool>& in_call = const_cast<sol_session*>(session)->in_call;
  if (!in_call.exchange(true)) {
    in_call_ = &in_call;
  } else if (!reads || session->in_callback.load() != std::this_thread::get_id()) {
    throw Error(SOL_ERROR_BUSY, std::string(function) + ": this session is in another call; wait for it, or make a session for each thread");
  }
}

Turn::~Turn() {
  if (in_call_ != nullptr) *in_call_ = false;
}

sol_run RunOf(const HostRun& run, const std::string& action) {
  sol_run made{};
  made.size = sizeof(made);
  made.tokens = run.tokens.data();
  made.num_tokens = run.tokens.size();
  made.past = static_cast<size_t>(run.past);
  made.action = action.c_str();
  made.graph = run.graph.c_str();
  made.kv_pages = run.kv_pages.data();
  made.channels = run.channels.data();
  made.num_logits = run.rows;
  return made;
}

PolicyRunner* PolicyOf(sol_session& session) {
  if (session.policy || !session.model->config().policy) return session.policy.get();
  if (EngineFactory* const factory = session.model->factory()) {
    session.policy = factory->MakePolicyRunner();
  } else {
    auto policy = std::make_unique<HostPolicy>(*session.model->config().policy);
    session.host_policy = policy.get();
    session.policy = std::move(policy);
  }
  return session.policy.get();
}

size_t HeldBy(const sol_session& session) {
  const int64_t drafts = session.generation ? session.generation->unchecked() : 0;
  return static_cast<size_t>(session.engine->length() - drafts);
}

void CloseGeneration(sol_session& session) {
  session.step_begun = false;
  if (session.decoder) session.decoder->Interrupt();
  if (session.generation && !session.generation->over()) session.generation->Close();
}

void EndGeneration(sol_session& session) {
  session.cancelled = false;
  CloseGeneration(session);
}

}  // namespace sol_rt

extern "C" {

sol_error* sol_session_create(sol_model* model, sol_session** session) {
  return Guard([&] {
    RequirePointer(session, "sol_session_create: session");
    *session = nullptr;
    RequireHandle(model, "sol_session_create");
    sol_rt::RequireFactory(*model->model, "sol_session_create");
    *session = new sol_session(model->model);
  });
}

sol_error* sol_session_create_on(sol_model* model, const sol_host_engine* engine, sol_session** session) {
  return Guard([&] {
    RequirePointer(session, "sol_session_create_on: session");
    *session = nullptr;
    RequireHandle(model, "sol_session_create_on");
    sol_rt::RequireSized(engine, "sol_host_engine");
    *session = new sol_session(model->model, sol_rt::ReadStruct(engine, sol_host_engine{}, "sol_host_engine"));
  });
}

void sol_session_release(sol_session* session) { delete session; }

sol_error* sol_session_tokens(const sol_session* session, int32_t* tokens, size_t capacity, size_t* count) {
  return Guard([&] {
    const Turn turn(session, "sol_session_tokens", true);
    FillArray(session->engine->tokens().data(), HeldBy(*session), tokens, capacity, count);
  });
}

sol_error* sol_session_dense_tokens(const sol_session* session, size_t* count) {
  return Guard([&] {
    const Turn turn(session, "sol_session_dense_tokens", true);
    RequirePointer(count, "sol_session_dense_tokens: count");
    *count = std::min(session->engine->DenseTokens(), HeldBy(*session));
  });
}

sol_error* sol_session_rewind(sol_session* session, size_t length) {
  return Guard([&] {
    const Turn turn(session, "sol_session_rewind");
    const size_t held = HeldBy(*session);
    if (length > held) {
      sol_rt::UsageFault("sol_session_rewind: got " + std::to_string(length) + ", expected 0 to " + std::to_string(held) + ", the tokens in the cache");
    }
    EndGeneration(*session);
    session->engine->Truncate(static_cast<int64_t>(length));
  });
}

sol_error* sol_session_save(sol_session* session, const char* file) {
  return Guard([&] {
    const Turn turn(session, "sol_session_save");
    RequirePointer(file, "sol_session_save: file");
    session->model->bundle().RequireOutside("session file", file);
    EndGeneration(*session);
    sol_rt::AtomicFile made(file);
    session->engine->Save(made.stream());
    made.Commit();
  });
}

sol_error* sol_session_restore(sol_session* session, const char* file) {
  return Guard([&] {
    const Turn turn(session, "sol_session_restore");
    RequirePointer(file, "sol_session_restore: file");
    const std::string path = file;
    const sol_rt::FileKind kind = sol_rt::KindOf(path);
    std::ifstream stream(sol_rt::SystemPath(path).c_str(), std::ios::binary);
    if (kind != sol_rt::FileKind::kFile || !stream) {
      const char* const got = kind == sol_rt::FileKind::kNone     ? "no such file"
                              : kind == sol_rt::FileKind::kFolder ? "a folder"
                                                                  : "a file that cannot be read";
      sol_rt::BundleFault(path, "", got, "one that sol_session_save wrote", "name that one, or start without it");
    }
    EndGeneration(*session);
    try {
      session->engine->Restore(stream);
    } catch (const sol_rt::Error& error) {
      const std::string what = error.what(), unnamed = "session file";  // the engine does not know the name
      throw sol_rt::Error(error.code(), path + (what.rfind(unnamed, 0) == 0 ? what.substr(unnamed.size()) : ": " + what));
    }
  });
}

sol_error* sol_session_set_progress(sol_session* session, sol_prompt_progress progress, void* user) {
  return Guard([&] {
    const Turn turn(session, "sol_session_set_progress");
    if (progress == nullptr) return session->engine->SetProgress(nullptr);
    session->engine->SetProgress([session, progress, user](size_t done, size_t total) {
      if (session->generation && session->generation->stepping()) return;  // a step with drafts, which is as short as others
      const sol_rt::InCallback mark(*session);
      progress(user, done, total);
    });
  });
}

uint64_t sol_session_private_bytes(const sol_session* session) {
  uint64_t bytes = 0;
  sol_error* const error = Guard([&] {
    const Turn turn(session, "sol_session_private_bytes", true);
    bytes = session->engine->PrivateBytes() + (session->generation ? session->generation->DraftBytes() : 0);
  });
  sol_error_release(error);
  return bytes;
}

}  // extern "C"
