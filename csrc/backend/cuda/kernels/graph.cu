// CUDA graphs: what is enqueued on a stream is captured and later launched as a whole. It runs once a launch or, as the
// body of a WHILE node, again and again. WHILE nodes came with CUDA 12.4.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

#if CUDART_VERSION >= 12040

__global__ void __launch_bounds__(kWarp) condition_kernel(const int32_t* go_on, cudaGraphConditionalHandle condition) {
  if (threadIdx.x == 0) cudaGraphSetConditional(condition, *go_on != 0);
}

void enqueue_condition(const KdtwCapture& capture, cudaStream_t stream) {
  KDTW_LAUNCH(condition_kernel, dim3(1), dim3(kWarp), stream, capture.go_on, capture.condition);
}

// Adds to the graph a kernel that sets the loop's condition from *go_on, and after it a WHILE node; then begins to
// capture the stream into that node's body. (The body ends with the same kernel, which end_graph adds.)
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
#if CUDART_VERSION >= 13000
  error = cudaGraphAddNode(&loop, graph, &before, nullptr, 1, &params);
#else
  error = cudaGraphAddNode(&loop, graph, &before, 1, &params);
#endif
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
  // Relaxed mode permits allocations during the capture: operations may need memory for the first time.
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
  // With a loop, what was captured is its body, which belongs to the graph that begin_graph made.
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
