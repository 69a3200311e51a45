// Streams from inside: work in order, and graphs that are captured from them.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "device.h"

struct SimtNode {
  std::function<void()> run;  // none for a loop
  cudaGraphConditionalHandle handle = 0;
  cudaGraph_t body = nullptr;
};

struct SimtGraph {
  std::vector<std::shared_ptr<SimtNode>> nodes;  // in the order they run
  std::vector<cudaGraphConditionalHandle> handles;
  std::vector<std::unique_ptr<SimtGraph>> bodies;  // of its loops
};

namespace simt {

// Streams that are captured into one graph. A stream joins by waiting for an event of the capture; before the end,
// somebody must wait for what it did last.
struct Capture {
  cudaGraph_t graph;
  std::unique_ptr<SimtGraph> owned;  // null when it captures into a graph that exists
  cudaStreamCaptureMode mode;
  cudaStream_t origin;
  std::set<cudaStream_t> joined, unfinished;
};

struct Task {
  std::function<void()> run;
  // To wait for, at its `generation`-th recording, or to set (when run is empty too). Lives as long as it is queued.
  std::shared_ptr<SimtEvent> event = nullptr;
  uint64_t generation = 0;
  bool waits = false;
};

}  // namespace simt

struct SimtStream {
  std::deque<simt::Task> tasks;
  std::shared_ptr<simt::Capture> capture;
};

struct SimtEvent : std::enable_shared_from_this<SimtEvent> {
  uint64_t recorded = 0, reached = 0;
  cudaStream_t stream = nullptr;
  std::shared_ptr<simt::Capture> capture;  // of its last recording
};

namespace simt {

std::recursive_mutex& device_lock();
SimtStream& stream_of(cudaStream_t stream);  // null is the default stream
void enqueue(cudaStream_t stream, std::function<void()> run);
void drain(cudaStream_t stream);
cudaError_t set_error(cudaError_t code, const std::string& text);
bool failed();                                // an error waits for cudaGetLastError
cudaError_t host_waits(cudaStream_t stream);  // counts, and drains; nullptr: everything
bool capture_forbids();                       // an unsafe call while a stream is captured; sets the error
extern bool inside_graph;                     // the work that runs comes from a graph

// The error of the one call, and the device stays usable.
template <typename F>
cudaError_t guarded(F f) {
  const std::lock_guard lock(device_lock());
  try {
    return f();
  } catch (const Error& error) {
    return set_error(cudaErrorLaunchFailure, error.text);
  }
}

}  // namespace simt
