// What the two users of CUDA graphs share: drafts (drafts.h) and passes that are replayed (replays.h), each of which
// captures a decoder's pass and the decisions about it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "backend/cuda/kernels.h"
#include "backend/cuda/memory.h"
#include "backend/runner.h"

namespace kdtw::cuda {

// Device memory for intermediate results, kept from call to call and replaced by a larger piece when it is too small. A
// captured graph has its addresses in it, so memory that a graph has used must stay: it goes to `outgrown`.
struct Scratch {
  Buffer logits, summaries, sifts, decided, scaled, scales, chunks;
  bool of_graphs = false;  // whether graphs are captured with it
  std::vector<Buffer> outgrown;
};

// What graphs use of the device's operations.
class GraphHost {
 public:
  virtual Pool& pool() = 0;
  virtual void* stream() = 0;
  // Enqueues the head's product with hidden [count, M] and the decisions that the requests, in device memory, ask for;
  // sampling: the most that one of them needs. Returns where in device memory the results will be.
  virtual const PickResult* decide(const Weight& head, const float* hidden, const PickRequest* requests, int count,
                                   KdtwSampling sampling) = 0;
  // The requests, whose lists of ids now point to device memory; the copy of the lists is enqueued. Valid until the
  // next call.
  virtual std::span<const PickRequest> stage(std::span<const PickRequest> requests) = 0;
  // Operations use this scratch memory from now on; null: the device's own.
  virtual void use_scratch(Scratch* scratch) = 0;
  virtual void wait() = 0;
  // Work that is enqueued from now on waits for all that the program (torch) has enqueued on the device by now.
  virtual void follow_program() = 0;
  // Calls `work`, whose operations go to a second stream: they run beside all that is enqueued on the first one until
  // join(). Memory that they use must not be used on the first stream meanwhile.
  virtual void aside(const std::function<void()>& work) = 0;
  // Work that is enqueued from now on waits for the second stream's.
  virtual void join() = 0;

 protected:
  ~GraphHost() = default;
};

// Calls use_scratch as long as it lives.
class UseScratch {
 public:
  UseScratch(GraphHost& host, Scratch& scratch) : host_(host) { host.use_scratch(&scratch); }
  ~UseScratch() { host_.use_scratch(nullptr); }
  UseScratch(const UseScratch&) = delete;
  UseScratch& operator=(const UseScratch&) = delete;

 private:
  GraphHost& host_;
};

// The base of both users of graphs.
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

// A graph has a fixed number of rows. So that few graphs serve all numbers of rows, a number is rounded up to 1, 2, 4,
// 8, 16, 32, 48, ...: what the kernels of products take at once. The rows that fill up do nothing.
inline int padded_rows(size_t rows) {
  constexpr size_t kMost = 16;
  if (rows > kMost) return static_cast<int>((rows + kMost - 1) / kMost * kMost);
  size_t width = 1;
  while (width < rows) width *= 2;
  return static_cast<int>(width);
}

// The most that one of these needs.
inline KdtwSampling sampling_of(std::span<const PickRequest> requests) {
  KdtwSampling most = kKdtwGreedy;
  for (const PickRequest& request : requests) most = std::max(most, kdtw_sampling(request.sampling, request.check));
  return most;
}

// Divides a block of memory into arrays: take() returns the offset of the next one.
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

}  // namespace kdtw::cuda
