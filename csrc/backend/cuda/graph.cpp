#include "backend/cuda/graph.h"

#include <stdexcept>

namespace kdtw::cuda {

Graph::Graph(const KdtwCudaTable& table, void* stream, const int32_t* go_on, const std::function<void()>& enqueue)
    : table_(table) {
  KdtwCapture capture;
  check(table_, table_.begin_graph(go_on, &capture, stream), "begin of a graph");
  try {
    enqueue();
  } catch (...) {
    table_.end_graph(&capture, nullptr, stream);
    throw;
  }
  check(table_, table_.end_graph(&capture, &graph_, stream), "making of a graph");
}

bool loop_runs(const KdtwCudaTable& table, void* stream) {
  // The loop's body takes away the number that lets it go on.
  void *device = nullptr, *host = nullptr;
  bool done = false;
  if (table.allocate(&device, sizeof(int32_t)) == 0 && table.allocate_host(&host, 2 * sizeof(int32_t)) == 0) {
    auto* const numbers = static_cast<int32_t*>(host);
    numbers[0] = 1, numbers[1] = 0;
    try {
      check(table, table.copy_in(device, numbers, sizeof(int32_t), stream), "copy to the device");
      const Graph loop(table, stream, static_cast<const int32_t*>(device), [&] {
        check(table, table.copy_in(device, numbers + 1, sizeof(int32_t), stream), "copy to the device");
      });
      loop.launch(stream);
      check(table, table.copy_out(numbers, device, sizeof(int32_t), stream), "copy from the device");
      check(table, table.synchronise(stream), "wait for the device");
      done = numbers[0] == 0;
    } catch (const std::runtime_error&) {
      done = false;
    }
  }
  table.synchronise(stream);
  if (device != nullptr) table.release(device);
  if (host != nullptr) table.release_host(host);
  return done;
}

}  // namespace kdtw::cuda
