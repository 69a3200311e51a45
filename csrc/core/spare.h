// What one call leaves for the next although nobody uses it now: that call takes it, or it is dropped where a device
// refuses memory.
#pragma once

#include <memory>
#include <mutex>
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
    const std::lock_guard lock(mutex_);
    kept_.swap(kept);  // what was there goes when the lock has gone
  }
  // Empty where nothing is there.
  std::shared_ptr<void> take() {
    const std::lock_guard lock(mutex_);
    return std::exchange(kept_, nullptr);
  }
  // Drops what all spares have, in the calling thread.
  static void drop_all() {
    std::vector<std::shared_ptr<void>> dropped;  // goes when the lock has gone
    const std::lock_guard lock(all().mutex);
    for (Spare* const spare : all().spares) dropped.push_back(spare->take());
  }

 private:
  struct All {
    std::mutex mutex;
    std::set<Spare*> spares;
  };
  // Never destroyed: spares may outlive what is static.
  static All& all() {
    static All* const all = new All;
    return *all;
  }

  std::mutex mutex_;
  std::shared_ptr<void> kept_;
};

}  // namespace kdtw
