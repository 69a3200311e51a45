// Device memory is allocated once and kept in a pool: what a pass, a row or a session gives back is used again. A block
// that comes back remembers the stream that may still work on it; other streams get it only when that stream has ended.
// Where another library in this process has an allocator of its own (torch), memory comes from there and goes back
// there.
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
#include "core/error.h"

namespace kdtw::cuda {

// The other library's allocator. Its functions are called from any thread, and throw nothing.
struct ProgramAllocator {
  // On a boundary of 256 bytes, for work on `stream` (null: on its current stream); null: there is no memory left.
  std::function<void*(int device, size_t bytes, void* stream)> allocate;
  std::function<void(void* memory)> release;
  // The calling thread's; null: the default stream.
  std::function<void*(int device)> current_stream;
};
// From now on, the allocator of every device for which no pool exists yet; null: none.
void use_allocator(std::shared_ptr<const ProgramAllocator> allocator);

// Makes a device the calling thread's as long as it lives; then that is the one again which was.
class [[nodiscard]] UseDevice {
 public:
  // quiet: errors are for later calls to find; else std::runtime_error.
  UseDevice(const KdtwCudaTable& table, int device, bool quiet = false)
      : table_(table), device_(device), before_(device) {
    const int32_t status = table.use_device(device, &before_);
    if (!quiet) check(table, status, "choice of the device");
  }
  ~UseDevice() {
    int32_t same = 0;
    if (before_ != device_) table_.use_device(before_, &same);
  }
  UseDevice(const UseDevice&) = delete;
  UseDevice& operator=(const UseDevice&) = delete;

 private:
  const KdtwCudaTable& table_;
  const int device_;
  int32_t before_;
};

class Pool : public std::enable_shared_from_this<Pool> {
 public:
  // The pool of a device, shared by all that use it.
  static std::shared_ptr<Pool> of(const Library& library, int device);
  ~Pool();

  const Library& library() const { return library_; }
  // Makes the device the calling thread's, as long as the result lives.
  UseDevice use() const;
  // Whether graphs with loops run on the device; found out by running one, once.
  bool runs_loops();
  // From now on they do not: a real one was refused.
  void no_loops();

  void* begin_stream();
  // Waits for the stream's work and lets others have its blocks, and the stream itself.
  void end_stream(void* stream);
  // What comes next on `stream` waits for all work that is on the other library's current stream by now.
  void follow_program(void* stream) const;

  // At least `bytes`, on a boundary of 256, not cleared, for work on `stream`. Null: for memory that outlives streams,
  // as weights; call follow_program before a stream writes there. Throws OutOfMemory.
  std::shared_ptr<void> allocate(size_t bytes, void* stream);
  // The same of host memory that the device copies from and to without the driver's help. When it comes back, no such
  // copy may be under way.
  std::shared_ptr<void> allocate_host(size_t bytes);

 private:
  struct Free {
    void* memory;
    void* stream;  // null: anybody's
  };

  Pool(const Library& library, int device);
  OutOfMemory refused(size_t bytes, void* stream) const;
  void give_back(void* memory, size_t bytes, void* stream);

  const Library& library_;
  const int device_;
  const std::shared_ptr<const ProgramAllocator> allocator_;
  std::mutex mutex_;
  std::multimap<size_t, Free> free_;
  std::multimap<size_t, void*> free_host_;
  std::set<void*> streams_;     // at work
  std::vector<void*> resting_;  // streams that have ended
  std::optional<bool> runs_loops_;
};

// Pinned host memory of the pool.
class Pinned {
 public:
  Pinned(Pool& pool, size_t bytes) : bytes_(bytes), memory_(pool.allocate_host(bytes)) {}

  std::byte* get() const { return static_cast<std::byte*>(memory_.get()); }
  size_t bytes() const { return bytes_; }

 private:
  const size_t bytes_;
  const std::shared_ptr<void> memory_;
};

// A block of pinned memory and one of the same size on the device, which stay where they are; offsets mean the same in
// both. When it is destroyed, the stream must have done its work.
class Exchange {
 public:
  Exchange(Pool& pool, void* stream, size_t bytes)
      : table_(*pool.library().table), stream_(stream), host_(pool, bytes), device_(pool.allocate(bytes, stream)) {}

  size_t bytes() const { return host_.bytes(); }
  // Where an offset is, on the host and on the device.
  template <typename T>
  T* here(size_t offset) const {
    return reinterpret_cast<T*>(host_.get() + offset);
  }
  template <typename T>
  T* there(size_t offset) const {
    return reinterpret_cast<T*>(static_cast<std::byte*>(device_.get()) + offset);
  }
  void send(size_t from, size_t bytes) const {
    check(table_, table_.copy_in(there<std::byte>(from), here<std::byte>(from), bytes, stream_), "copy to the device");
  }
  void fetch(size_t from, size_t bytes) const {
    check(table_, table_.copy_out(here<std::byte>(from), there<std::byte>(from), bytes, stream_),
          "copy from the device");
  }

 private:
  const KdtwCudaTable& table_;
  void* const stream_;
  const Pinned host_;
  const std::shared_ptr<void> device_;
};

// Small arrays on their way from the host to the kernels of one stream. What was put stays where it is until the next
// make_room or reset.
class Staging {
 public:
  Staging(std::shared_ptr<Pool> pool, void* stream) : pool_(std::move(pool)), stream_(stream) {}

  // To be called before the put()s that belong together; waits for the device where the room is used up.
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
  std::optional<Exchange> exchange_;
  size_t used_ = 0, sent_ = 0;
};

}  // namespace kdtw::cuda
