// Graphs of what a stream is given: run once a launch, or again and again by a WHILE node (CUDA 12.4; this code: the
// interface of CUDA 13).
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

#if CUDART_VERSION >= 13000

__global__ void __launch_bounds__(kWarp) condition_kernel(const int32_t* go_on, cudaGraphConditionalHandle condition) {
  if (threadIdx.x == 0) cudaGraphSetConditional(condition, *go_on != 0);
}

void enqueue_condition(const KdtwCapture& capture, cudaStream_t stream) {
  KDTW_LAUNCH(condition_kernel, dim3(1), dim3(kWarp), 0, stream, capture.go_on, capture.condition);
}

// A kernel that looks at *go_on, and a WHILE node whose body is captured from here on.
cudaError_t begin_loop(KdtwCapture& capture, cudaGraph_t graph, cudaStream_t stream) {
  cudaGraphConditionalHandle condition = 0;
  cudaError_t error = cudaGraphConditionalHandleCreate(&condition, graph, 0, cudaGraphCondAssignDefault);
  if (error != cudaSuccess) return error;
  capture.condition = condition;
  constexpr auto kMode = cudaStreamCaptureModeRelaxed;
  error = cudaStreamBeginCaptureToGraph(stream, graph, nullptr, nullptr, 0, kMode);
  if (error != cudaSuccess) return error;
  enqueue_condition(capture, stream);
  cudaGraph_t same = nullptr;
  error = cudaStreamEndCapture(stream, &same);
  if (error != cudaSuccess) return error;
  cudaGraphNode_t before = nullptr, loop = nullptr;
  size_t nodes = 1;
  error = cudaGraphGetNodes(graph, &before, &nodes);
  if (error != cudaSuccess) return error;
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = condition;
  params.conditional.type = cudaGraphCondTypeWhile;
  params.conditional.size = 1;
  error = cudaGraphAddNode(&loop, graph, &before, nullptr, 1, &params);
  if (error != cudaSuccess) return error;
  return cudaStreamBeginCaptureToGraph(stream, params.conditional.phGraph_out[0], nullptr, nullptr, 0, kMode);
}

#else

void enqueue_condition(const KdtwCapture&, cudaStream_t) {}
cudaError_t begin_loop(KdtwCapture&, cudaGraph_t, cudaStream_t) { return cudaErrorNotSupported; }

#endif

}  // namespace

int32_t begin_graph(const int32_t* go_on, KdtwCapture* capture, void* stream) {
  const auto run = static_cast<cudaStream_t>(stream);
  *capture = {nullptr, 0, go_on};
  // Relaxed: memory may be asked for meanwhile.
  if (go_on == nullptr) return told(cudaStreamBeginCapture(run, cudaStreamCaptureModeRelaxed));
  cudaGraph_t graph = nullptr;
  cudaError_t error = cudaGraphCreate(&graph, 0);
  if (error != cudaSuccess) return told(error);
  error = begin_loop(*capture, graph, run);
  if (error != cudaSuccess) {
    cudaGraphDestroy(graph);
    return told(error);
  }
  capture->graph = graph;
  return cudaSuccess;
}

int32_t end_graph(KdtwCapture* capture, void** graph, void* stream) {
  const auto run = static_cast<cudaStream_t>(stream);
  if (capture->go_on != nullptr) enqueue_condition(*capture, run);
  cudaGraph_t captured = nullptr;
  cudaError_t error = cudaStreamEndCapture(run, &captured);
  // A loop's body belongs to its graph.
  const auto whole = capture->go_on != nullptr ? static_cast<cudaGraph_t>(capture->graph) : captured;
  cudaGraphExec_t made = nullptr;
  if (error == cudaSuccess && graph != nullptr) error = cudaGraphInstantiate(&made, whole, 0);
  if (whole != nullptr) cudaGraphDestroy(whole);
  if (graph != nullptr) *graph = made;
  return told(error);
}

int32_t launch_graph(void* graph, void* stream) {
  return told(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph), static_cast<cudaStream_t>(stream)));
}

int32_t destroy_graph(void* graph) { return told(cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(graph))); }

}  // namespace kdtw::cuda
