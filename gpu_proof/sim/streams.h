// Streams from inside: work in order, and graphs that are captured from them.
#pragma once

#include <deque>
#include <functional>
#include <memory>
#include <mutex>
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

struct SimtStream {
  std::deque<std::function<void()>> tasks;
  cudaGraph_t captured = nullptr;  // what is enqueued goes there
  int device = 0;                  // that was chosen when it was made
};

struct SimtEvent {
  struct Recording {
    cudaStream_t stream;
    bool reached = false;
  };
  std::shared_ptr<Recording> last;
};

namespace simt {

extern thread_local int chosen_device;  // the calling thread's
std::recursive_mutex& device_lock();
// Whether kernels and graphs may go to the stream: those of the device that is chosen. Sets the error.
bool takes_work(cudaStream_t stream);
SimtStream& stream_of(cudaStream_t stream);  // null is the default stream
void enqueue(cudaStream_t stream, std::function<void()> run);
void drain(cudaStream_t stream);
cudaError_t set_error(cudaError_t code, const std::string& text);
size_t pinned_bytes();                        // in use
bool failed();                                // an error waits for cudaGetLastError
cudaError_t host_waits(cudaStream_t stream);  // counts, and drains; nullptr: everything
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
