// A word from another thread.
#pragma once

#include <atomic>

namespace kdtw {

// Rung from another thread, it ends a run that waits for a row to finish: something else is to be done.
class Bell {
 public:
  void ring() { rung_.store(true, std::memory_order_release); }
  void clear() { rung(); }
  // Whether it has been rung since rung() was asked last.
  bool waits() const { return rung_.load(std::memory_order_acquire); }
  bool rung() { return rung_.exchange(false, std::memory_order_acq_rel); }

 private:
  std::atomic<bool> rung_{false};
};

}  // namespace kdtw
