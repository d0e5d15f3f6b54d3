// A team: the threads of one parallel call, which go through the call's phases together.
//
// Every member runs the same function, phase by phase:
//
//   RunTeam(context, members, [&](Member& member) {
//     member.Run(tasks, prepare, task, ahead);      // waits for all tasks
//     member.Finish(tasks, prepare, task, last);
//   });
//
// ONNX Runtime promises neither that all members run at the same time nor that each has a thread of its own, so nobody ever waits for
// a member, only for tasks that a running member has claimed. One that enters late joins where the others are; one alone does
// everything; one that enters after the end returns at once. Which member runs a task must not change its result.
#pragma once

#include <hwy/cache_control.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "cpu/matmul/matmul_kernels.h"

namespace sol {

// Of `count` things in steps of `step`, the share of task `task` of `tasks`: all within one step of each other.
inline Range ShareOf(size_t count, size_t step, size_t task, size_t tasks) {
  const size_t steps = (count + step - 1) / step;
  const auto bound = [&](size_t i) { return std::min(count, steps * i / tasks * step); };
  return {bound(task), bound(task + 1)};
}

// How many such tasks: one a member, or as many for each as leave a task no more than `most` things.
inline size_t TasksOf(size_t count, size_t step, size_t most, size_t members) {
  const size_t rounds = (count + members * most - 1) / (members * most);
  return std::min(members * rounds, (count + step - 1) / step);
}

class Team {
 public:
  static constexpr size_t kMaxPhases = 8;

 private:
  friend class Member;

  class Phase {
   public:
    // One of the tasks 0 … tasks - 1 that nobody has, from either end: members that come from different ends keep to their own halves,
    // which are neighbours in memory. False where none is left.
    bool Claim(size_t tasks, bool from_back, size_t& task) {
      const auto left = [tasks](uint64_t claimed) { return (claimed & kFront) + (claimed >> 32) < tasks; };
      if (!left(claimed_.load(std::memory_order_relaxed))) return false;
      const uint64_t before = claimed_.fetch_add(from_back ? uint64_t{1} << 32 : 1, std::memory_order_relaxed);
      if (!left(before)) return false;
      task = from_back ? tasks - 1 - static_cast<size_t>(before >> 32) : static_cast<size_t>(before & kFront);
      return true;
    }

    // Whether these are the last of the tasks to end.
    bool End(size_t ended, size_t tasks) { return ended_.fetch_add(ended, std::memory_order_acq_rel) + ended == tasks; }

    void Release() { released_.store(true, std::memory_order_release); }
    bool Released() const { return released_.load(std::memory_order_acquire); }

   private:
    static constexpr uint64_t kFront = 0xFFFFFFFFu;
    alignas(64) std::atomic<uint64_t> claimed_{0};  // from the front in the low half, from the back in the high one
    alignas(64) std::atomic<size_t> ended_{0};
    std::atomic<bool> released_{false};
  };

  Phase phases_[kMaxPhases];
  std::atomic<bool> over_{false};
};

class Member {
 public:
  Member(Team& team, size_t index) : team_(team), index_(index) {}

  // Scratch memory that a member alone writes is told apart by it.
  size_t Index() const { return index_; }

  // Nothing is left for a member that enters now.
  bool Over() const { return team_.over_.load(std::memory_order_relaxed); }

  // The task that this member claims first of `tasks`, as a rule.
  size_t FirstOf(size_t tasks) const { return FromBack() ? tasks - 1 : 0; }

  // The next phase: task(0) … task(tasks - 1), tasks > 0, each run by one member, which has called prepare() before its first one.
  // A member for whom nothing is left calls ahead(), to fetch what it reads next. Returns when all tasks have been done. Nothing may
  // throw.
  template <class Prepare, class Task, class Ahead>
  void Run(size_t tasks, const Prepare& prepare, const Task& task, const Ahead& ahead) {
    Team::Phase& phase = team_.phases_[next_++];
    if (Work(phase, tasks, prepare, task)) {
      phase.Release();
      ahead();
    } else {
      ahead();
      Wait(phase);
    }
  }

  template <class Prepare, class Task>
  void Run(size_t tasks, const Prepare& prepare, const Task& task) {
    Run(tasks, prepare, task, [] {});
  }

  // The last phase: nobody waits for its end but the caller of the team. When all tasks have been done, one member calls last().
  template <class Prepare, class Task, class Last>
  void Finish(size_t tasks, const Prepare& prepare, const Task& task, const Last& last) {
    if (Work(team_.phases_[next_++], tasks, prepare, task)) last();
    team_.over_.store(true, std::memory_order_relaxed);
  }

 private:
  bool FromBack() const { return index_ % 2 != 0; }

  // True for the member that ended the phase.
  template <class Prepare, class Task>
  bool Work(Team::Phase& phase, size_t tasks, const Prepare& prepare, const Task& task) {
    size_t ended = 0, claimed = 0;
    for (; phase.Claim(tasks, FromBack(), claimed); ++ended) {
      if (ended == 0) prepare();
      task(claimed);
    }
    return ended != 0 && phase.End(ended, tasks);
  }

  static void Wait(const Team::Phase& phase) {
    constexpr size_t kSpins = 2000;  // some tens of microseconds; then the thread waited for may need this processor
    for (size_t spins = 0; !phase.Released(); ++spins) {
      if (spins < kSpins) {
        hwy::Pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  Team& team_;
  const size_t index_;
  size_t next_ = 0;
};

// Runs f(member) for up to `members` members on the session's threads and waits.
template <class Context, class F>
void RunTeam(const Context& context, size_t members, const F& f) {
  Team team;
  context.ParallelFor(members, [&](size_t index) {
    Member member(team, index);
    if (!member.Over()) f(member);
  });
}

}  // namespace sol
