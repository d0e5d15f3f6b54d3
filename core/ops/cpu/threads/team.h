// A team: the threads of one parallel call, which go through the phases of a step together.
//
// Every member runs the same function. A phase of it is a loop over the tasks that this member claims:
//
//   Phase phase = member.Enter(tasks);
//   if (phase.HasTask()) …                                     // what this member's first task needs
//   for (; phase.HasTask(); phase.Next()) Work(phase.Task());
//   phase.End();
//   …                                                          // ask for what is read next, while others still work
//   phase.Wait();                                              // until every task of the phase has been done
//
// ONNX Runtime promises neither that all members run at the same time nor that each has a thread of its own. So nobody ever waits for a
// member, only for tasks that a running member has claimed. A member that enters late joins the phase the others are in; one alone does
// everything; one that enters after the end returns at once. Which member runs a task must not change the task's result. A phase must not
// throw.
#pragma once

#include <hwy/cache_control.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <thread>

#include "cpu/threads/team_size.h"

namespace sol {

struct Range {
  size_t begin, end;
};

// The share of task `task` of `tasks` in `count` things, cut at multiples of `step`. Shares differ by at most one step.
inline Range ShareOf(size_t count, size_t step, size_t task, size_t tasks) {
  const size_t steps = (count + step - 1) / step;
  const auto bound = [&](size_t i) { return std::min(count, steps * i / tasks * step); };
  return {bound(task), bound(task + 1)};
}

// Number of tasks to cut `count` things into: one a member, or as many more as leave a task at most `most` things.
inline size_t TasksOf(size_t count, size_t step, size_t most, size_t members) {
  const size_t rounds = (count + members * most - 1) / (members * most);
  return std::min(members * rounds, (count + step - 1) / step);
}

// State of one phase that a team shares.
class PhaseState {
 public:
  // Claims one of the tasks 0 … tasks - 1 that nobody has, from either end. Members that come from different ends keep to their own halves,
  // which are neighbours in memory. False where no task is left.
  bool Claim(size_t tasks, bool from_back, size_t& task) {
    const auto left = [tasks](uint64_t claimed) { return (claimed & kFront) + (claimed >> 32) < tasks; };
    if (!left(claimed_.load(std::memory_order_relaxed))) return false;
    const uint64_t before = claimed_.fetch_add(from_back ? uint64_t{1} << 32 : 1, std::memory_order_relaxed);
    if (!left(before)) return false;
    task = from_back ? tasks - 1 - static_cast<size_t>(before >> 32) : static_cast<size_t>(before & kFront);
#ifdef __SANITIZE_THREAD__
    std::this_thread::sleep_for(std::chrono::microseconds(20));  // so that other members get tasks too: of one alone no race is seen
#endif
    return true;
  }

  // Counts tasks as done. True where they are the last ones.
  bool End(size_t done, size_t tasks) { return done_.fetch_add(done, std::memory_order_acq_rel) + done == tasks; }

  void Release() { released_.store(true, std::memory_order_release); }
  bool Released() const { return released_.load(std::memory_order_acquire); }

 private:
  static constexpr uint64_t kFront = 0xFFFFFFFFu;
  alignas(64) std::atomic<uint64_t> claimed_{0};  // from the front in the low half, from the back in the high one
  alignas(64) std::atomic<size_t> done_{0};
  std::atomic<bool> released_{false};
};

// One member's part in one phase.
class Phase {
 public:
  // Claims the member's first task.
  Phase(PhaseState& state, size_t members, size_t tasks, bool from_back)
      : state_(state), members_(members), tasks_(tasks), from_back_(from_back), began_(TeamSize::Clock::now()) {
    Next();
  }

  bool HasTask() const { return has_task_; }
  size_t Task() const { return task_; }
  size_t Tasks() const { return tasks_; }
  // Claims the next task.
  void Next() {
    has_task_ = state_.Claim(tasks_, from_back_, task_);
    if (has_task_) ++claimed_;
  }

  // Reports to the team that this member's tasks have been done. True for one member alone: the one with which all tasks of the phase are done.
  bool End() {
    if (claimed_ == 0 || !state_.End(claimed_, tasks_)) return false;
    state_.Release();
    return true;
  }

  void Wait() const {
    constexpr size_t kSpins = 2000;  // some tens of microseconds; then the thread waited for may need this processor
    for (size_t spins = 0; spins < kSpins; ++spins) {
      if (state_.Released()) return;
      hwy::Pause();
    }
    const auto from = TeamSize::Clock::now();
    while (!state_.Released()) std::this_thread::yield();
    TeamSize::Shared().Waited(members_, from - began_, TeamSize::Clock::now() - from);
  }

 private:
  PhaseState& state_;
  const size_t members_, tasks_;
  const bool from_back_;
  const TeamSize::Clock::time_point began_;
  bool has_task_ = false;
  size_t task_ = 0, claimed_ = 0;
};

class Team {
 public:
  static constexpr size_t kMaxPhases = 8;

  explicit Team(size_t members) : members_(members) {}

 private:
  friend class Member;

  const size_t members_;

  PhaseState phases_[kMaxPhases];
  std::atomic<bool> over_{false};
};

class Member {
 public:
  Member(Team& team, size_t index) : team_(team), index_(index) {}

  // Separates members' scratch memory.
  size_t Index() const { return index_; }

  // True if nothing is left for a member that enters now.
  bool Over() const { return team_.over_.load(std::memory_order_relaxed); }

  // The task that this member claims first of `tasks`, as a rule.
  size_t FirstOf(size_t tasks) const { return FromBack() ? tasks - 1 : 0; }

  // The next phase, of `tasks` > 0 tasks. Every member enters the same phases in the same order.
  Phase Enter(size_t tasks) { return Phase(team_.phases_[next_++], team_.members_, tasks, FromBack()); }

  // After the last phase, whose end nobody waits for but the caller of the team.
  void Leave() { team_.over_.store(true, std::memory_order_relaxed); }

 private:
  bool FromBack() const { return index_ % 2 != 0; }

  Team& team_;
  const size_t index_;
  size_t next_ = 0;
};

// Calls f(0) … f(tasks - 1) on the session's threads and waits; on the caller's alone if `members` is 1, so that no other is woken, to spin
// for a while afterwards. How long the caller waits for the others counts for TeamSize.
template <class Context, class F>
void RunTasks(const Context& context, size_t members, size_t tasks, const F& f) {
  if (members == 1) {
    for (size_t task = 0; task < tasks; ++task) f(task);
    return;
  }
  const std::thread::id caller = std::this_thread::get_id();
  const auto began = TeamSize::Clock::now();
  auto worked_until = began;  // the caller's alone
  context.ParallelFor(tasks, [&](size_t task) {
    f(task);
    if (std::this_thread::get_id() == caller) worked_until = TeamSize::Clock::now();
  });
  if (worked_until != began) TeamSize::Shared().Waited(members, worked_until - began, TeamSize::Clock::now() - worked_until);
}

// Runs f(member) for up to `members` members on the session's threads and waits.
template <class Context, class F>
void RunTeam(const Context& context, size_t members, const F& f) {
  Team team(members);
  RunTasks(context, members, members, [&](size_t index) {
    Member member(team, index);
    if (!member.Over()) f(member);
  });
}

}  // namespace sol
