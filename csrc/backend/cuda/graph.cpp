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
  // The body is kernels, as a draft's is: `place` goes from each number to the one that stands there, until that is 0.
  struct Numbers {
    int32_t place, copied, zero;
    int32_t next[4];
  };
  void *device = nullptr, *host = nullptr;
  bool done = false;
  if (table.allocate(&device, sizeof(Numbers)) == 0 && table.allocate_host(&host, sizeof(Numbers)) == 0) {
    auto* const there = static_cast<Numbers*>(device);
    auto* const here = static_cast<Numbers*>(host);
    *here = {3, 0, 0, {0, 0, 1, 2}};
    const auto floats = [](int32_t* numbers) { return reinterpret_cast<float*>(numbers); };
    try {
      check(table, table.copy_in(device, host, sizeof(Numbers), stream), "copy to the device");
      const Graph loop(table, stream, &there->place, [&] {
        check(table, table.gather(floats(there->next), &there->place, 1, 1, floats(&there->copied), stream), "gather");
        check(table, table.gather(floats(&there->copied), &there->zero, 1, 1, floats(&there->place), stream), "gather");
      });
      loop.launch(stream);
      check(table, table.copy_out(host, device, sizeof(Numbers), stream), "copy from the device");
      check(table, table.synchronise(stream), "wait for the device");
      done = here->place == 0;
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
