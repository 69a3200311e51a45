// What drafts and replayed passes, which are captured into graphs, use of their backend.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/cuda/kernels.h"
#include "backend/cuda/memory.h"
#include "backend/runner.h"
#include "core/error.h"

namespace kdtw::cuda {

// Device memory that operations need for themselves, kept from call to call.
struct Scratch {
  Buffer logits, summaries, decided, scaled, scales;
  bool of_graphs = false;        // graphs go on using what has become too small
  std::vector<Buffer> outgrown;  // which is here
};

// What graphs use of the device's operations.
class GraphHost {
 public:
  virtual Pool& pool() = 0;
  virtual void* stream() = 0;
  // Enqueues the decisions about hidden [count, M] that requests in device memory ask for; says where they will be.
  virtual const PickResult* decide(const Weight& head, const float* hidden, const PickRequest* requests, int count) = 0;
  // The requests with their lists of ids in device memory, on their way there. Valid until the next call.
  virtual std::span<const PickRequest> stage(std::span<const PickRequest> requests) = 0;
  // Operations take their memory from `scratch` until the next call; null: from the device's own.
  virtual void use_scratch(Scratch* scratch) = 0;
  virtual void wait() = 0;
  // What comes next begins when all that the program has enqueued elsewhere by now has ended.
  virtual void follow_program() = 0;
  // Enqueues operations beside all that comes next, until join(). Memory that `work` asks for must not be used by
  // anything that is not put aside too.
  virtual void aside(const std::function<void()>& work) = 0;
  // What comes next begins when all that was put aside has ended.
  virtual void join() = 0;

 protected:
  ~GraphHost() = default;
};

// For the length of a call.
class UseScratch {
 public:
  UseScratch(GraphHost& host, Scratch& scratch) : host_(host) { host.use_scratch(&scratch); }
  ~UseScratch() { host_.use_scratch(nullptr); }
  UseScratch(const UseScratch&) = delete;
  UseScratch& operator=(const UseScratch&) = delete;

 private:
  GraphHost& host_;
};

// Somebody who captures a decoder's pass and its decisions: what both kinds are made with, and the memory of their
// graphs.
class GraphUser {
 protected:
  GraphUser(GraphHost& host, DecoderPass pass, const Weight& head)
      : host_(host),
        pool_(host.pool()),
        table_(*pool_.library().table),
        stream_(host.stream()),
        pass_(std::move(pass)),
        head_(head) {
    scratch_.of_graphs = true;
  }

  GraphHost& host_;
  Pool& pool_;
  const KdtwCudaTable& table_;
  void* const stream_;
  const DecoderPass pass_;
  const Weight& head_;
  Scratch scratch_;
};

// Rows are filled up to the next number that products take at once, so that few graphs serve all numbers.
inline int padded_rows(size_t rows) {
  constexpr size_t kMost = 16;
  if (rows > kMost) return static_cast<int>((rows + kMost - 1) / kMost * kMost);
  size_t width = 1;
  while (width < rows) width *= 2;
  return static_cast<int>(width);
}

// Gives out places in a block of memory, one after the other.
class Layout {
 public:
  template <typename T>
  size_t take(size_t count) {
    const size_t offset = (bytes_ + 15) / 16 * 16;
    bytes_ = offset + count * sizeof(T);
    return offset;
  }
  size_t bytes() const { return bytes_; }

 private:
  size_t bytes_ = 0;
};

// A block of pinned memory and its twin on the device, which stay where they are. When it goes, the stream must have
// done its work.
class Exchange {
 public:
  Exchange(Pool& pool, void* stream, size_t bytes)
      : table_(*pool.library().table), stream_(stream), device_(pool.allocate(bytes, stream)) {
    void* pinned = nullptr;
    if (table_.allocate_host(&pinned, bytes) != 0) throw OutOfMemory(bytes);
    host_ = static_cast<std::byte*>(pinned);
  }
  ~Exchange() { table_.release_host(host_); }
  Exchange(const Exchange&) = delete;
  Exchange& operator=(const Exchange&) = delete;

  // Where an offset is, on the host and on the device.
  template <typename T>
  T* here(size_t offset) const {
    return reinterpret_cast<T*>(host_ + offset);
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
  const std::shared_ptr<void> device_;
  std::byte* host_ = nullptr;
};

}  // namespace kdtw::cuda
