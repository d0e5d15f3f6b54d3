// Keeps the signals of a failing write from ending the host: the write then returns an error, as elsewhere.
#pragma once

#if defined(_WIN32) || defined(__EMSCRIPTEN__)
#define SOL_RT_NO_SIGNALS
#else
#include <pthread.h>
#include <signal.h>

#include <cerrno>
#endif

namespace sol_rt {

#ifdef SOL_RT_NO_SIGNALS
class WithoutSignals {
 public:
  WithoutSignals() {}
};
#else
// While it lives, SIGPIPE (the reader of a pipe has left) and SIGXFSZ (a limit on the size of files) that this thread's writes raise are dropped.
class WithoutSignals {
 public:
  WithoutSignals() {
    sigset_t pending;
    sigemptyset(&ours_);
    sigpending(&pending);
    for (const int signal : {SIGPIPE, SIGXFSZ}) {
      if (sigismember(&pending, signal) == 0) sigaddset(&ours_, signal);  // one that waits already is the host's
    }
    pthread_sigmask(SIG_BLOCK, &ours_, &before_);
  }
  ~WithoutSignals() {
    const int error = errno;
    for (const int signal : {SIGPIPE, SIGXFSZ}) {
      sigset_t pending, one;
      sigpending(&pending);
      if (sigismember(&ours_, signal) != 1 || sigismember(&pending, signal) != 1) continue;
      int taken;
      sigemptyset(&one);
      sigaddset(&one, signal);
      sigwait(&one, &taken);
    }
    pthread_sigmask(SIG_SETMASK, &before_, nullptr);
    errno = error;
  }
  WithoutSignals(const WithoutSignals&) = delete;
  WithoutSignals& operator=(const WithoutSignals&) = delete;

 private:
  sigset_t ours_, before_;
};
#endif

}  // namespace sol_rt
