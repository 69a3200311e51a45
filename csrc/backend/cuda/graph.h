// A CUDA graph: work that is captured from a stream once, and then launched as a whole.
#pragma once

#include <functional>

#include "backend/cuda/library.h"

namespace kdtw::cuda {

class Graph {
 public:
  // Captures what `enqueue` enqueues on the stream. go_on, in device memory: a launch repeats the work while *go_on is
  // not 0, which is checked before each repetition; null: a launch runs it once. std::runtime_error where the device
  // has no such graphs.
  Graph(const KdtwCudaTable& table, void* stream, const int32_t* go_on, const std::function<void()>& enqueue);
  ~Graph() { table_.destroy_graph(graph_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(void* stream) const { check(table_, table_.launch_graph(graph_, stream), "launch of a graph"); }

 private:
  const KdtwCudaTable& table_;
  void* graph_ = nullptr;
};

// Whether graphs with loops work on this device, found out by running one; waits for the stream.
bool loop_runs(const KdtwCudaTable& table, void* stream);

}  // namespace kdtw::cuda
