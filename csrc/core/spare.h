// What one call leaves for the next although nobody uses it now: that call takes it, or it is dropped where a device
// refuses memory.
#pragma once

#include <pthread.h>

#include <memory>
#include <mutex>
#include <new>
#include <set>
#include <utility>
#include <vector>

namespace kdtw {

class Spare {
 public:
  Spare() {
    const std::lock_guard lock(all().mutex);
    all().spares.insert(this);
  }
  ~Spare() {
    const std::lock_guard lock(all().mutex);
    all().spares.erase(this);
  }
  Spare(const Spare&) = delete;
  Spare& operator=(const Spare&) = delete;

  // Drops what was there before.
  void put(std::shared_ptr<void> kept) {
    const std::lock_guard lock(all().mutex);
    kept_.swap(kept);  // what was there goes when the lock has gone
  }
  // Empty where nothing is there.
  std::shared_ptr<void> take() {
    const std::lock_guard lock(all().mutex);
    return std::exchange(kept_, nullptr);
  }
  // Drops what all spares have, in the calling thread.
  static void drop_all() {
    std::vector<std::shared_ptr<void>> dropped;  // goes when the lock has gone, also where there is no memory for it
    const std::lock_guard lock(all().mutex);
    dropped.reserve(all().spares.size());
    for (Spare* const spare : all().spares) dropped.push_back(std::exchange(spare->kept_, nullptr));
  }

 private:
  struct All {
    std::mutex mutex;
    std::set<Spare*> spares;
  };
  // Never destroyed: spares may outlive what is static. A fork waits for who has the mutex, as the child could not.
  static All& all() {
    static All* const all = [] {
      auto* const made = new All;
      if (pthread_atfork([] { Spare::all().mutex.lock(); }, [] { Spare::all().mutex.unlock(); },
                         [] { Spare::all().mutex.unlock(); }) != 0)
        throw std::bad_alloc();
      return made;
    }();
    return *all;
  }

  std::shared_ptr<void> kept_;
};

}  // namespace kdtw
