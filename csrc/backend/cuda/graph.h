// Work of a stream that is captured once and launched as a whole.
#pragma once

#include <functional>

#include "backend/cuda/library.h"

namespace kdtw::cuda {

class Graph {
 public:
  // What `enqueue` enqueues on the stream. go_on: device memory; the graph repeats while it is not 0, which is looked
  // at before each time; null: it runs once. std::runtime_error where a device has no such graphs.
  Graph(const KdtwCudaTable& table, void* stream, const int32_t* go_on, const std::function<void()>& enqueue);
  ~Graph() { table_.destroy_graph(graph_); }
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;

  void launch(void* stream) const { check(table_, table_.launch_graph(graph_, stream), "launch of a graph"); }

 private:
  const KdtwCudaTable& table_;
  void* graph_ = nullptr;
};

// Whether a graph with a loop can be made and does what it should; waits for the stream.
bool loop_runs(const KdtwCudaTable& table, void* stream);

}  // namespace kdtw::cuda
