// Device memory that is asked for once: what a pass, a row or a session gives back is used again. A block goes back
// tagged with the stream that may still be working on it, and another stream gets it after that one has ended. Where
// another library in this process has an allocator of its own (torch), memory comes from there and goes back there.
#pragma once

#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "backend/cuda/library.h"

namespace kdtw::cuda {

// The other library. Its functions are called from any thread, and throw nothing.
struct ProgramAllocator {
  // On a boundary of 256 bytes, for work on `stream` (null: on its current stream); null: there is no memory left.
  std::function<void*(int device, size_t bytes, void* stream)> allocate;
  std::function<void(void* memory)> release;
  // The calling thread's; null: the default stream.
  std::function<void*(int device)> current_stream;
};
// Of the devices that nothing is on yet; null: none.
void use_allocator(std::shared_ptr<const ProgramAllocator> allocator);

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  // The pool of a device, shared by all that use it.
  static std::shared_ptr<Pool> of(const Library& library, int device);
  ~Pool();

  const Library& library() const { return library_; }
  // Makes the device the calling thread's.
  void use() const;
  // Whether graphs with loops run on the device; tried out once.
  bool runs_loops();

  void* begin_stream();
  // Waits for the stream's work and lets others have its blocks, and the stream itself.
  void end_stream(void* stream);
  // What comes next on `stream` waits for the allocator's current stream, if there is one.
  void follow_program(void* stream) const;

  // At least `bytes`, on a boundary of 256, not cleared. Null stream: for something that outlives streams; a stream
  // that writes there follows the allocator first. OutOfMemory.
  std::shared_ptr<void> allocate(size_t bytes, void* stream);

 private:
  struct Free {
    void* memory;
    void* stream;  // null: anybody's
  };

  Pool(const Library& library, int device);
  void give_back(void* memory, size_t bytes, void* stream);

  const Library& library_;
  const int device_;
  const std::shared_ptr<const ProgramAllocator> allocator_;
  std::mutex mutex_;
  std::multimap<size_t, Free> free_;
  std::set<void*> streams_;     // at work
  std::vector<void*> resting_;  // streams that have ended
  std::optional<bool> runs_loops_;
};

// Small arrays on their way from the host to the kernels of one stream: pinned memory and its twin on the device. What
// was put stays until the next make_room or reset.
class Staging {
 public:
  Staging(std::shared_ptr<Pool> pool, void* stream) : pool_(std::move(pool)), stream_(stream) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // To be called before the put()s that belong together; waits for the device where nothing is left.
  void make_room(size_t pieces, size_t bytes);
  // Where on the device a copy of `data` will be: after the next send(), which copies all that was put, together.
  const void* put(const void* data, size_t bytes);
  template <typename T>
  std::span<const T> put(std::span<const T> data) {
    if (data.empty()) return {};
    return {static_cast<const T*>(put(data.data(), data.size_bytes())), data.size()};
  }
  void send();
  // To be called when the stream has done all its work.
  void reset() { used_ = sent_ = 0; }

 private:
  const std::shared_ptr<Pool> pool_;
  void* const stream_;
  std::byte* host_ = nullptr;
  std::shared_ptr<void> device_;
  size_t capacity_ = 0, used_ = 0, sent_ = 0;
};

}  // namespace kdtw::cuda
