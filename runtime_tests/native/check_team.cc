// Checks that teams of threads go through their phases in step, whenever their members enter, with more members than processors too.
// Prints the number of teams; exits with 1 and one line where a phase read what the one before had not written.

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <thread>
#include <vector>

#include "cpu/threads/team.h"

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

}  // namespace

int main() {
  std::mt19937 random(1);
  for (size_t i = 0; i < kTeams; ++i) CheckTeam(random, 1 + i % 9);
  std::printf("%zu teams\n", kTeams);
  return 0;
}
