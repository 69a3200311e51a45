#include "backend/cpu/thread_pool.h"

#include <cxxabi.h>
#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <exception>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/clock.h"

namespace kdtw::cpu {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// About 20 us of spinning: longer than the gap between two operations of a step, short beside a step.
constexpr int kSpins = 2000;

// A thread's share: pieces are taken from its front by the thread itself and from its back by others.
class alignas(64) Share {
 public:
  void set(int begin, int end, int piece) {
    piece_ = piece;
    bounds_.store(pack(begin, end), std::memory_order_relaxed);
  }

  bool take(bool front, int& begin, int& end, int& ahead) {
    uint64_t bounds = bounds_.load(std::memory_order_relaxed);
    for (;;) {
      const int first = static_cast<int>(bounds >> 32), last = static_cast<int>(bounds & 0xffffffff);
      if (first >= last) return false;
      const int piece = std::min(piece_, last - first);
      begin = front ? first : last - piece, end = begin + piece, ahead = last;
      if (bounds_.compare_exchange_weak(bounds, front ? pack(end, last) : pack(first, begin),
                                        std::memory_order_relaxed))
        return true;
    }
  }

 private:
  static uint64_t pack(int begin, int end) { return static_cast<uint64_t>(begin) << 32 | static_cast<uint32_t>(end); }

  std::atomic<uint64_t> bounds_{0};
  int piece_ = 0;
};

class Pool {
 public:
  // Has no worker yet: those that cannot be started would leave behind those that were.
  explicit Pool(int workers) : slots_(workers), shares_(workers + 1) {}

  void run(int count, int grain, int parts, RangeFunction function, void* body) {
    // Everything below the lock belongs to the region that holds it: a caller that finds it taken touches nothing.
    std::unique_lock lock(busy_, std::try_to_lock);
    if (lock) start_workers();
    parts = lock ? std::min(parts, 1 + workers_) : 1;
    if (parts == 1) return function(body, {0, count, count, 0});
    region_ = {function, body, grain, count, parts};
    const long chunks = (count + grain - 1L) / grain;
    for (int part = 0; part < parts; ++part) {
      const int begin = static_cast<int>(chunks * part / parts), end = static_cast<int>(chunks * (part + 1) / parts);
      shares_[part].set(begin, end, ((end - begin + 3) / 4 + 3) / 4 * 4);  // whole groups of panels
    }
    for (int i = 0; i < parts - 1; ++i) {
      Slot& slot = slots_[i];
      slot.state.store(State::kCalled, std::memory_order_release);
      slot.epoch.fetch_add(1, std::memory_order_release);
      if (slot.asleep.load(std::memory_order_relaxed)) keep_away(slot.thread);
      slot.epoch.notify_one();
    }
    work_off(0);
    // Nothing is left to take. Who has not come is not needed any more; who has is waited for.
    for (int i = 0; i < parts - 1; ++i) {
      State called = State::kCalled;
      if (slots_[i].state.compare_exchange_strong(called, State::kIdle, std::memory_order_acquire)) continue;
      for (int spin = 0; slots_[i].state.load(std::memory_order_acquire) != State::kIdle; ++spin) {
        if (spin < kSpins) {
          relax();
        } else {
          sched_yield();
        }
      }
    }
    if (!failed_.load(std::memory_order_relaxed)) return;
    failed_.store(false, std::memory_order_relaxed);
    std::rethrow_exception(std::exchange(error_, nullptr));
  }

 private:
  struct Region {
    RangeFunction function;
    void* body;
    int grain, count, parts;
  };
  enum class State { kIdle, kCalled, kAtWork };
  struct alignas(64) Slot {
    std::atomic<unsigned> epoch{0};
    std::atomic<State> state{State::kIdle};
    std::atomic<bool> asleep{false};
    pthread_t thread;
  };

  // Lets the thread run wherever the caller may, but not where it runs now: the kernel likes to put a thread that is
  // woken beside its waker, idle processors or not, and there it would start when the waker's own work is done.
  static void keep_away(pthread_t thread) {
    cpu_set_t set;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof set, &set) != 0) return;
    CPU_CLR(here, &set);
    if (CPU_COUNT(&set) > 0) pthread_setaffinity_np(thread, sizeof set, &set);
  }

  // Starts the workers that are missing. Where the system refuses one (limits of threads or memory), the pool serves
  // with those it has, and asks again a second later.
  void start_workers() {
    if (workers_ == static_cast<int>(slots_.size())) return;
    const auto now = Clock::now();
    if (now < next_start_) return;
    next_start_ = now + std::chrono::seconds(1);
    try {
      for (; workers_ < static_cast<int>(slots_.size()); ++workers_) {
        std::thread thread([this, i = workers_] { work(i); });
        slots_[workers_].thread = thread.native_handle();
        thread.detach();
      }
    } catch (const std::system_error&) {
    } catch (const std::bad_alloc&) {
    }
  }

  // Takes pieces until none is left, or a piece has failed in any thread; keeps the first exception.
  void work_off(int part) {
    const Region& region = region_;
    const auto item = [&region](int chunk) {
      return static_cast<int>(std::min<long>(long{chunk} * region.grain, region.count));
    };
    int begin, end, ahead;
    try {
      for (int i = 0; i < region.parts; ++i) {
        const int whose = (part + i) % region.parts;
        while (!failed_.load(std::memory_order_relaxed) && shares_[whose].take(i == 0, begin, end, ahead))
          region.function(region.body, {item(begin), item(end), item(ahead), part, &failed_});
      }
    } catch (...) {
      if (!failed_.exchange(true, std::memory_order_relaxed)) error_ = std::current_exception();
    }
  }

  void work(int index) {
    // Exceptions need memory of the thread's own, which glibc makes at first use and cannot do without: now, when
    // memory for the whole thread has just been had.
    [[maybe_unused]] void* volatile own = __cxxabiv1::__cxa_get_globals();
    Slot& slot = slots_[index];
    unsigned seen = 0;
    for (;;) {
      for (int spin = 0; slot.epoch.load(std::memory_order_acquire) == seen && spin < kSpins; ++spin) relax();
      slot.asleep.store(true, std::memory_order_relaxed);
      slot.epoch.wait(seen, std::memory_order_acquire);
      slot.asleep.store(false, std::memory_order_relaxed);
      seen = slot.epoch.load(std::memory_order_acquire);
      State called = State::kCalled;
      if (!slot.state.compare_exchange_strong(called, State::kAtWork, std::memory_order_acquire)) continue;
      work_off(index + 1);
      slot.state.store(State::kIdle, std::memory_order_release);
    }
  }

  std::vector<Slot> slots_;
  std::vector<Share> shares_;
  int workers_ = 0;  // started: slots [0, workers_)
  Clock::time_point next_start_ = Clock::time_point::min();
  Region region_{};
  std::atomic<bool> failed_{false};  // a piece of this region threw error_
  std::exception_ptr error_;
  std::mutex busy_;
};

std::atomic<Pool*> pool{nullptr};
std::mutex creation;

// The child of a fork has none of the parent's workers: it forgets the parent's pool (its memory is
// leaked on purpose, other threads of the parent may have held its lock) and makes one when it needs it.
void after_fork_in_child() {
  pool.store(nullptr);
  new (&creation) std::mutex;
}

Pool& get_pool() {
  if (Pool* existing = pool.load(std::memory_order_acquire)) return *existing;
  std::lock_guard lock(creation);
  if (Pool* existing = pool.load(std::memory_order_acquire)) return *existing;
  static std::once_flag registered;
  std::call_once(registered, [] {
    if (pthread_atfork(nullptr, nullptr, after_fork_in_child) != 0) throw std::bad_alloc();
  });
  pool.store(new Pool(hardware_threads() - 1), std::memory_order_release);
  return *pool.load();
}

}  // namespace

int hardware_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  const int n = static_cast<int>(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

void run_ranges(int count, int grain, int parts, RangeFunction function, void* body) {
  get_pool().run(count, grain, parts, function, body);
}

}  // namespace kdtw::cpu
