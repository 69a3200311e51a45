// Streams, events, errors and copies. Work runs when it is enqueued or, with the lazy setting, not before the host
// waits for it: then a host that reads too early sees what was there before.
#include "streams.h"

#include <cstring>
#include <map>
#include <set>
#include <utility>

#include "check.h"

namespace simt {

bool inside_graph = false;

namespace {

SimtStream default_stream;
std::set<cudaStream_t> all_streams;
std::map<const char*, size_t> pinned;
cudaError_t error_code = cudaSuccess;
std::string error_text = "no error";

// Runs the stream's first task.
void advance(SimtStream& stream) {
  const auto task = std::move(stream.tasks.front());
  stream.tasks.pop_front();
  task();
}

void drain_all() {
  drain(nullptr);
  for (cudaStream_t stream : all_streams) drain(stream);
}

void push(cudaStream_t stream, std::function<void()> task) {
  if (cudaGraph_t graph = stream_of(stream).captured) {
    graph->nodes.push_back(std::make_shared<SimtNode>(SimtNode{std::move(task)}));
    return;
  }
  stream_of(stream).tasks.push_back(std::move(task));
  if (!settings().lazy) drain(stream);
}

bool is_pinned(const void* p) {
  const auto after = pinned.upper_bound(static_cast<const char*>(p));
  if (after == pinned.begin()) return false;
  const auto [first, bytes] = *std::prev(after);
  return static_cast<const char*>(p) < first + bytes;
}

void check_range(const void* p, size_t bytes) {
  if (in_heap(p) && !allocated(p, bytes)) {
    throw Error{"copy of " + std::to_string(bytes) + " bytes runs over device memory's end, or its memory was freed"};
  }
}

void copy_now(void* to, const void* from, size_t bytes) {
  check_range(to, bytes);
  check_range(from, bytes);
  const bool into = in_heap(to), out_of = in_heap(from);
  Counters& c = counters();
  ++(into ? (out_of ? c.copies_on_device : c.copies_to_device) : c.copies_to_host);
  if (into && !out_of) c.bytes_to_device += bytes;
  if (!into && out_of) c.bytes_to_host += bytes;
  std::memmove(to, from, bytes);
  if (into) check::written_by_runtime(to, bytes);
}

}  // namespace

std::recursive_mutex& device_lock() {
  static std::recursive_mutex lock;
  return lock;
}

size_t pinned_bytes() {
  const std::lock_guard lock(device_lock());
  size_t bytes = 0;
  for (const auto& [memory, size] : pinned) bytes += size;
  return bytes;
}

SimtStream& stream_of(cudaStream_t stream) { return stream ? *stream : default_stream; }

bool takes_work(cudaStream_t stream) {
  if (!stream || stream->device == chosen_device) return true;
  set_error(cudaErrorInvalidResourceHandle, "this stream belongs to a device that the thread has not chosen");
  return false;
}

void drain(cudaStream_t stream) {
  while (!stream_of(stream).tasks.empty()) advance(stream_of(stream));
}

bool failed() { return error_code != cudaSuccess; }

cudaError_t set_error(cudaError_t code, const std::string& text) {
  error_text = text;
  return error_code = code;
}

cudaError_t host_waits(cudaStream_t stream) {
  if (stream_of(stream).captured) {
    return set_error(cudaErrorStreamCaptureUnsupported, "the host cannot wait for a stream that is captured");
  }
  ++counters().host_synchronisations;
  drain(stream);
  return error_code;
}

void enqueue(cudaStream_t stream, std::function<void()> run) {
  push(stream, [run = std::move(run)] {
    if (failed()) return;  // as on a GPU: after an error nothing more runs
    try {
      run();
    } catch (const Error& error) {
      set_error(cudaErrorLaunchFailure, error.text);
    }
  });
}

void enqueue_launch(Work work, cudaStream_t stream) {
  const std::lock_guard lock(device_lock());
  if (!takes_work(stream)) return;
  if (!stream_of(stream).captured) ++counters().host_launches;
  enqueue(stream, [work = std::move(work)] {
    if (inside_graph) ++counters().graph_kernels;
    run_launch(work);
  });
}

void bad_argument(const std::string& kernel, int index) {
  const std::lock_guard lock(device_lock());
  set_error(cudaErrorIllegalAddress, kernel + ": argument " + std::to_string(index) + " points to host memory");
}

}  // namespace simt

using namespace simt;

// ---------------------------------------------------------------- errors
cudaError_t cudaGetLastError() {
  const std::lock_guard lock(device_lock());
  return std::exchange(error_code, cudaSuccess);
}
cudaError_t cudaPeekAtLastError() { return error_code; }
const char* cudaGetErrorString(cudaError_t code) {
  if (code == cudaSuccess) return "no error";
  return error_text.c_str();
}

// ---------------------------------------------------------------- memory
cudaError_t cudaMalloc(void** p, size_t bytes) {
  return guarded([&] {
    const uint64_t most = settings().memory ? settings().memory : kMemoryBytes;
    if (heap_live_bytes() + bytes > most || !(*p = heap_allocate(bytes))) {
      return set_error(cudaErrorMemoryAllocation, "out of memory");
    }
    return cudaSuccess;
  });
}
cudaError_t cudaFree(void* p) {
  return guarded([&] {
    drain_all();  // as on a GPU: nothing that runs can still use it
    heap_free(p);
    return cudaSuccess;
  });
}
cudaError_t cudaMallocHost(void** p, size_t bytes) {
  return guarded([&] {
    if (settings().host_memory && pinned_bytes() + bytes > settings().host_memory)
      return set_error(cudaErrorMemoryAllocation, "out of host memory");
    *p = std::malloc(bytes ? bytes : 1);
    pinned[static_cast<char*>(*p)] = bytes;
    ++counters().host_allocations;
    return cudaSuccess;
  });
}
cudaError_t cudaFreeHost(void* p) {
  return guarded([&] {
    drain_all();
    if (!pinned.erase(static_cast<char*>(p))) return set_error(cudaErrorInvalidValue, "not pinned host memory");
    std::free(p);
    ++counters().host_frees;
    return cudaSuccess;
  });
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t stream) {
  return guarded([&] {
    const bool captured = stream_of(stream).captured != nullptr;
    if (!in_heap(from) && !is_pinned(from) && !captured) {  // pageable: staged before the call returns
      auto staged =
          std::make_shared<std::vector<char>>(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
      enqueue(stream, [=] { copy_now(to, staged->data(), bytes); });
      return error_code;
    }
    enqueue(stream, [=] { copy_now(to, from, bytes); });
    if (!in_heap(to) && !is_pinned(to) && !captured) return host_waits(stream);  // pageable: the call waits
    return error_code;
  });
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  return guarded([&] {
    ++counters().host_synchronisations;
    drain_all();
    if (!failed()) copy_now(to, from, bytes);
    return error_code;
  });
}

// ---------------------------------------------------------------- streams and events
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  return guarded([&] {
    all_streams.insert(*stream = new SimtStream);
    (*stream)->device = chosen_device;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  return guarded([&] {
    drain(stream);
    all_streams.erase(stream);
    delete stream;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return guarded([&] { return host_waits(stream); });
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  return guarded([&] {
    *event = new SimtEvent;
    return cudaSuccess;
  });
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  return guarded([&] {
    delete event;
    return cudaSuccess;
  });
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  return guarded([&] {
    if (stream_of(stream).captured) return set_error(cudaErrorNotSupported, "no events are captured here");
    event->last = std::make_shared<SimtEvent::Recording>(SimtEvent::Recording{stream});
    push(stream, [recording = event->last] { recording->reached = true; });
    return error_code;
  });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  return guarded([&] {
    if (stream_of(stream).captured) return set_error(cudaErrorNotSupported, "no events are captured here");
    push(stream, [recording = event->last] {
      while (recording && !recording->reached) advance(stream_of(recording->stream));
    });
    return error_code;
  });
}

// ---------------------------------------------------------------- capture
cudaError_t cudaStreamBeginCaptureToGraph(cudaStream_t stream, cudaGraph_t graph, const cudaGraphNode_t*,
                                          const cudaGraphEdgeData*, size_t, cudaStreamCaptureMode) {
  return guarded([&] {
    if (!takes_work(stream)) return cudaErrorInvalidResourceHandle;
    if (!stream) return set_error(cudaErrorStreamCaptureUnsupported, "the default stream cannot be captured");
    if (stream->captured) return set_error(cudaErrorStreamCaptureUnsupported, "the stream is being captured already");
    stream->captured = graph;
    return cudaSuccess;
  });
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  auto graph = std::make_unique<SimtGraph>();
  const cudaError_t error = cudaStreamBeginCaptureToGraph(stream, graph.get(), nullptr, nullptr, 0, mode);
  if (error == cudaSuccess) graph.release();  // cudaStreamEndCapture gives it to its caller
  return error;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  return guarded([&] {
    *graph = std::exchange(stream_of(stream).captured, nullptr);
    if (!*graph) return set_error(cudaErrorStreamCaptureInvalidated, "this stream did not begin a capture");
    return error_code;
  });
}
