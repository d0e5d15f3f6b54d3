// Checks that teams of threads go through their phases in step, whenever their members enter, with more members than processors too; and when
// a team gets fewer members. And that threads are counted while they live, callers not.
// Prints the number of teams; exits with 1 and one line where a phase read what the one before had not written.

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "common/onnx/node.h"
#include "cpu/threads/team.h"

namespace sol {
__attribute__((weak)) std::atomic<const OrtApi*> g_api{nullptr};  // where register.cc is not linked
}

namespace {

constexpr size_t kTeams = 300, kPhases = 6;

// Stands in for a run of a node: each task on a thread of its own, some late, some one after the other.
struct Threads {
  std::mt19937& random;

  template <class F>
  void ParallelFor(size_t tasks, F&& f) const {
    std::vector<std::thread> threads;
    for (size_t i = 0; i + 1 < tasks; ++i) {
      threads.emplace_back([&f, i, late = random() % 3 * 40] {
        std::this_thread::sleep_for(std::chrono::microseconds(late));
        f(i);
      });
    }
    f(tasks - 1);
    for (std::thread& thread : threads) thread.join();
  }
};

[[noreturn]] void Fail(const char* what, size_t phase) {
  std::printf("%s in phase %zu\n", what, phase);
  std::exit(1);
}

void CheckTeam(std::mt19937& random, size_t members) {
  const size_t tasks = 1 + random() % (2 * members + 1);
  std::vector<std::vector<size_t>> written(kPhases, std::vector<size_t>(tasks));  // not atomic: phases have to order them
  size_t ends = 0;
  sol::RunTeam(Threads{random}, members, [&](sol::Member& member) {
    for (size_t at = 0; at < kPhases; ++at) {
      sol::Phase phase = member.Enter(tasks);
      for (; phase.HasTask(); phase.Next()) {
        size_t sum = 1;
        if (at > 0) {
          for (const size_t value : written[at - 1]) sum += value;
        }
        written[at][phase.Task()] += sum;
      }
      const bool ended = phase.End();
      if (at + 1 < kPhases) {
        phase.Wait();
      } else if (ended) {
        ++ends;
      }
    }
    member.Leave();
  });
  size_t expected = 1;
  for (size_t phase = 0; phase < kPhases; ++phase) {
    for (const size_t value : written[phase]) {
      if (value != expected) Fail("a wrong sum", phase);
    }
    expected = expected * tasks + 1;
  }
  if (ends != 1) Fail("no end, or several,", kPhases);
}

void Expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("team size: expected %s\n", what);
  std::exit(1);
}

// Waits are reported to it at times of the check's own.
void CheckTeamSize() {
  using std::chrono::milliseconds;
  sol::TeamSize size;
  auto now = sol::TeamSize::Clock::time_point{} + std::chrono::hours(1);
  const auto wait = [&](milliseconds waited, milliseconds worked = milliseconds(1), size_t threads = 4) {
    now += waited + worked;
    size.Waited(size.Of(threads, now), worked, waited, now);
  };
  for (int i = 0; i < 20; ++i) wait(milliseconds(4), milliseconds(100));
  Expect(size.Of(4, now) == 4, "all members after waits that are rare");
  for (int i = 0; i < 100; ++i) wait(milliseconds(4), milliseconds(5));
  Expect(size.Of(4, now) == 4, "all members after waits shorter than the work");
  for (int i = 0; i < 20; ++i) size.Waited(4, milliseconds(1), milliseconds(5), now);
  Expect(size.Of(4, now) == 4, "one wait that many members tell of to count once");
  for (int i = 0; i < 20; ++i) size.Waited(4, milliseconds(1), milliseconds(2), now - milliseconds(10 * i));
  Expect(size.Of(4, now) == 4, "waits that are told of late to count as little");
  now += std::chrono::seconds(1);
  wait(milliseconds(4));
  Expect(size.Of(4, now) == 4, "all members after a single wait");
  wait(milliseconds(4));
  Expect(size.Of(4, now) == 3, "one member less after two waits in a row");
  for (int i = 0; i < 3; ++i) wait(milliseconds(4));
  Expect(size.Of(4, now) == 2, "another one less after three more");
  size_t fewest = 4;
  for (int i = 0; i < 50; ++i) {
    wait(milliseconds(4));
    fewest = std::min(fewest, size.Of(4, now));
  }
  Expect(fewest == 1, "one member in the end, and never none");
  now += std::chrono::hours(1);
  for (int i = 0; i < 4; ++i, now += std::chrono::hours(1)) size.Of(4, now);
  Expect(size.Of(4, now) == 4, "all members back after a while");

  // With a member that keeps others waiting whenever it is there, pauses grow, up to a limit.
  milliseconds alone{0}, longest{0};
  for (int trial = 0; trial < 12; ++trial) {
    while (size.Of(2, now) == 2) wait(milliseconds(4));
    for (alone = milliseconds(0); size.Of(2, now) == 1; now += milliseconds(10)) alone += milliseconds(10);
    Expect(alone >= longest, "pauses that do not shrink");
    longest = alone;
  }
  Expect(longest >= milliseconds(3000) && longest <= milliseconds(4000), "pauses of some seconds in the end");

  // The same of two members that keep others waiting.
  now += std::chrono::hours(1);
  longest = milliseconds(0);
  for (int trial = 0; trial < 12; ++trial) {
    while (size.Of(4, now) > 2) wait(milliseconds(4));
    for (alone = milliseconds(0); size.Of(4, now) == 2; now += milliseconds(10)) alone += milliseconds(10);
    Expect(alone >= longest, "pauses of two members that do not shrink");
    longest = alone;
  }
  Expect(longest >= milliseconds(3000) && longest <= milliseconds(4000), "pauses of two members of some seconds in the end");

  // Once nothing waits any more, all are soon back, however many they are.
  while (size.Of(8, now) > 1) wait(milliseconds(4), milliseconds(1), 8);
  for (alone = milliseconds(0); size.Of(8, now) < 8; now += milliseconds(10)) alone += milliseconds(10);
  Expect(alone >= milliseconds(3000) && alone <= milliseconds(6500), "eight members back within twice the longest pause");
}

// Every caller is a thread of its own, and so is every one that helps it. All have a task at the same time.
void CheckThreadCount() {
  constexpr size_t kTasks = 4;
  static OrtApi api{};
  api.KernelContext_ParallelFor = [](const OrtKernelContext*, void (*run)(void*, size_t), size_t tasks, size_t, void* user) noexcept -> OrtStatus* {
    std::vector<std::thread> others;
    for (size_t i = 1; i < tasks; ++i) others.emplace_back(run, user, i);
    run(user, 0);
    for (std::thread& thread : others) thread.join();
    return nullptr;
  };
  sol::g_api = &api;
  for (int i = 0; i < 20; ++i) {
    std::thread([] {
      std::atomic<size_t> running{0}, checked{0};
      sol::Context(nullptr).ParallelFor(kTasks, [&](size_t) {
        for (++running; running < kTasks;) std::this_thread::yield();
        if (sol::ThreadCount::Seen() != kTasks) Fail("threads that are not counted", 0);
        for (++checked; checked < kTasks;) std::this_thread::yield();
      });
      if (sol::ThreadCount::Seen() != 1) Fail("a caller that is counted, or threads that have ended,", 0);
    }).join();
  }
}

}  // namespace

int main() {
  std::mt19937 random(1);
  CheckTeamSize();
  CheckThreadCount();
  for (size_t i = 0; i < kTeams; ++i) CheckTeam(random, 1 + i % 9);
  std::printf("%zu teams\n", kTeams);
  return 0;
}
