#include "backend/cpu/thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <mutex>
#include <thread>
#include <vector>

namespace kdtw::cpu {
namespace {

inline void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

// About 20 us of spinning: longer than the gap between two operations of a step, short beside a step.
constexpr int kSpins = 2000;

class Pool {
 public:
  explicit Pool(int workers) : slots_(workers) {
    for (int i = 0; i < workers; ++i) std::thread([this, i] { work(i); }).detach();
  }

  void run(int parts, PartFunction function, void* context) {
    // Everything below the lock belongs to the region that holds it: a caller that finds it taken touches nothing.
    std::unique_lock lock(busy_, std::try_to_lock);
    const int helpers = lock ? std::min<int>(parts - 1, slots_.size()) : 0;
    if (helpers > 0) {
      pending_.store(helpers, std::memory_order_relaxed);
      for (int i = 0; i < helpers; ++i) {
        slots_[i].job = {function, context};
        slots_[i].epoch.fetch_add(1, std::memory_order_release);
        slots_[i].epoch.notify_one();
      }
    }
    function(context, 0);
    // Parts beyond the workers there are (all of them, when the pool was taken) run here.
    for (int part = helpers + 1; part < parts; ++part) function(context, part);
    if (helpers == 0) return;
    for (int spin = 0; pending_.load(std::memory_order_acquire) != 0; ++spin) {
      if (spin < kSpins) {
        relax();
      } else {
        sched_yield();
      }
    }
  }

 private:
  struct Job {
    PartFunction function = nullptr;
    void* context = nullptr;
  };
  struct alignas(64) Slot {
    std::atomic<unsigned> epoch{0};
    Job job;
  };

  void work(int index) {
    Slot& slot = slots_[index];
    unsigned seen = 0;
    for (;;) {
      for (int spin = 0; slot.epoch.load(std::memory_order_acquire) == seen && spin < kSpins; ++spin) relax();
      slot.epoch.wait(seen, std::memory_order_acquire);
      ++seen;
      slot.job.function(slot.job.context, index + 1);
      pending_.fetch_sub(1, std::memory_order_release);
    }
  }

  std::vector<Slot> slots_;
  std::mutex busy_;
  std::atomic<int> pending_{0};
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
  std::call_once(registered, [] { pthread_atfork(nullptr, nullptr, after_fork_in_child); });
  pool.store(new Pool(hardware_threads() - 1), std::memory_order_release);
  return *pool.load();
}

}  // namespace

int hardware_threads() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
  const int n = static_cast<int>(std::thread::hardware_concurrency());
  return n > 0 ? n : 1;
}

void run_parts(int parts, PartFunction function, void* context) { get_pool().run(parts, function, context); }

}  // namespace kdtw::cpu
