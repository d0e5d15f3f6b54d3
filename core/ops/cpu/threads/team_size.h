// Number of members of a team: as many as there are threads, and fewer while other programs take processors away.
//
// Programs that share a processor run in turns of milliseconds. A member whose thread has to wait for its turn keeps the whole team waiting,
// far longer than a phase takes. A few such waits mean nothing. Where they take more of the time than a member saves, which is about one part
// in as many as there are members, the next teams have one member less, for a pause. If the waits return with the member, the next pause is
// twice as long. Members that are left out come back one after the other, each after half the time that the one before took.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <mutex>

namespace sol {

class TeamSize {
 public:
  using Clock = std::chrono::steady_clock;

  // Of all teams of the process.
  static TeamSize& Shared() {
    static TeamSize shared;
    return shared;
  }

  // The members of the next team or parallel call on a pool of `threads`. At least 1.
  size_t Of(size_t threads) {
    const size_t away = away_.load(std::memory_order_relaxed);
    return away == 0 ? std::min(threads, most_.load(std::memory_order_relaxed)) : Of(threads, Clock::now());
  }
  size_t Of(size_t threads, Clock::time_point now) {
    size_t away = away_.load(std::memory_order_relaxed);
    if (away > 0 && now.time_since_epoch().count() >= until_.load(std::memory_order_relaxed)) away = GiveBack(now);
    threads = std::min(threads, most_.load(std::memory_order_relaxed));
    return threads > away ? threads - away : 1;
  }

  // Teams have at most so many members from now on, 0 meaning as many as there are threads.
  void SetMost(size_t members) { most_.store(members == 0 ? SIZE_MAX : members, std::memory_order_relaxed); }
  size_t Most() const {
    const size_t most = most_.load(std::memory_order_relaxed);
    return most == SIZE_MAX ? 0 : most;
  }

  // Reports a wait for the other `members` - 1 that is over: how long this member had worked before, and how long it waited.
  void Waited(size_t members, Clock::duration worked, Clock::duration waited) {
    if (waited > kLeastWait && waited > worked) Waited(members, worked, waited, Clock::now());
  }
  // The same of a wait that was over at `now`. Members may report their waits in another order than these ended.
  void Waited(size_t members, Clock::duration worked, Clock::duration waited, Clock::time_point now) {
    if (waited <= kLeastWait || waited <= worked || members < 2) return;
    const std::lock_guard<std::mutex> lock(mutex_);
    now = std::max(now, told_);
    const Milliseconds since = now - told_, lost = waited;
    lost_ = lost_ * std::exp(-since.count() / kMemory) + std::min(lost, since).count();  // others may have waited for the same member
    told_ = now;
    if (lost_ * static_cast<double>(members) < kMostLost) return;
    lost_ = 0;
    pause_ = now < returned_ + 2 * pause_ ? std::min<Clock::duration>(2 * pause_, kLongestPause) : Clock::duration(kFirstPause);
    next_ = pause_;
    SetEnd(now);
    away_.fetch_add(1, std::memory_order_relaxed);
  }

 private:
  using Milliseconds = std::chrono::duration<double, std::milli>;
  static constexpr std::chrono::microseconds kLeastWait{400};  // below the turns that systems give, above what a phase's members differ by
  static constexpr double kMemory = 50;                        // milliseconds for which a wait counts
  static constexpr double kMostLost = 0.6 * kMemory;           // over the members: one of two saves a third of the time, or a bit more
  static constexpr std::chrono::milliseconds kFirstPause{64}, kLongestPause{3200};  // a thread of the pool spins for tens of milliseconds

  size_t GiveBack(Clock::time_point now) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const size_t away = away_.load(std::memory_order_relaxed);
    if (away == 0 || now.time_since_epoch().count() < until_.load(std::memory_order_relaxed)) return away;
    returned_ = now;
    next_ = std::max<Clock::duration>(next_ / 2, kFirstPause);
    SetEnd(now);
    away_.store(away - 1, std::memory_order_relaxed);
    return away - 1;
  }

  void SetEnd(Clock::time_point now) { until_.store((now + next_).time_since_epoch().count(), std::memory_order_relaxed); }

  std::atomic<size_t> most_{SIZE_MAX};
  std::atomic<size_t> away_{0};       // members that are left out
  std::atomic<Clock::rep> until_{0};  // when one of them comes back
  std::mutex mutex_;                  // of what follows, and of changes of what stands above
  double lost_ = 0;                   // milliseconds of waits, the older the less
  Clock::duration pause_ = kFirstPause;  // after the last member that was taken away
  Clock::duration next_ = kFirstPause;   // until the next member comes back
  Clock::time_point returned_{}, told_{};
};

}  // namespace sol
