// Graphs: instantiation takes a copy, a launch runs the nodes in the order they were captured, and loops (WHILE nodes)
// go on by their handle's value, which kernels set.
#include <algorithm>
#include <map>

#include "streams.h"

struct SimtGraphExec {
  std::shared_ptr<const SimtGraph> graph;
};

namespace simt {
namespace {

constexpr uint64_t kMostIterations = 1'000'000;

struct Condition {
  unsigned value, initial;
  bool assign_at_launch;
  uint32_t set_in = 0;  // the launch that set it last
};
std::map<cudaGraphConditionalHandle, Condition> conditions;

std::unique_ptr<SimtGraph> copy_of(const SimtGraph& graph) {
  auto copy = std::make_unique<SimtGraph>();
  copy->handles = graph.handles;
  for (const auto& node : graph.nodes) {
    auto twin = std::make_shared<SimtNode>(*node);
    if (twin->body) {
      copy->bodies.push_back(copy_of(*twin->body));
      twin->body = copy->bodies.back().get();
    }
    copy->nodes.push_back(std::move(twin));
  }
  return copy;
}

void run_graph(const SimtGraph& graph);

void run_loop(const SimtNode& node) {
  const unsigned& value = conditions.at(node.handle).value;
  for (uint64_t i = 0; value && !failed(); ++i) {
    if (i == kMostIterations) throw Error{"a WHILE node did not end in a million iterations"};
    ++counters().while_iterations;
    run_graph(*node.body);
  }
}

void run_graph(const SimtGraph& graph) {
  for (const auto& node : graph.nodes) {
    if (node->run)
      node->run();
    else
      run_loop(*node);
  }
}

void launch_graph(const SimtGraph& graph) {
  for (const cudaGraphConditionalHandle handle : graph.handles) {
    Condition& condition = conditions.at(handle);
    if (condition.assign_at_launch) condition.value = condition.initial;
  }
  inside_graph = true;
  struct Leave {
    ~Leave() { inside_graph = false; }
  } leave;
  run_graph(graph);
}

}  // namespace
}  // namespace simt

using namespace simt;

cudaError_t cudaGraphCreate(cudaGraph_t* graph, unsigned) {
  *graph = new SimtGraph;
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t graph, cudaGraphNode_t* nodes, size_t* count) {
  const size_t wanted = nodes ? std::min(*count, graph->nodes.size()) : 0;
  for (size_t i = 0; i < wanted; ++i) nodes[i] = graph->nodes[i].get();
  *count = nodes ? wanted : graph->nodes.size();
  return cudaSuccess;
}

cudaError_t cudaGraphConditionalHandleCreate(cudaGraphConditionalHandle* handle, cudaGraph_t graph, unsigned value,
                                             unsigned flags) {
  return guarded([&] {
    *handle = conditions.size() + 1;
    conditions[*handle] = {value, value, (flags & cudaGraphCondAssignDefault) != 0};
    graph->handles.push_back(*handle);
    return cudaSuccess;
  });
}

cudaError_t cudaGraphAddNode(cudaGraphNode_t* out, cudaGraph_t graph, const cudaGraphNode_t*, const cudaGraphEdgeData*,
                             size_t, cudaGraphNodeParams* params) {
  return guarded([&] {
    cudaConditionalNodeParams& conditional = params->conditional;
    if (params->type != cudaGraphNodeTypeConditional || conditional.type != cudaGraphCondTypeWhile) {
      return set_error(cudaErrorNotSupported, "the simulated device adds WHILE nodes; capture the others");
    }
    if (!settings().conditional_nodes) return set_error(cudaErrorNotSupported, "this device has no conditional nodes");
    if (conditional.size != 1 || !conditions.contains(conditional.handle)) {
      return set_error(cudaErrorInvalidValue, "a WHILE node without exactly one body, or of an unknown handle");
    }
    auto node = std::make_shared<SimtNode>();
    node->handle = conditional.handle;
    graph->bodies.push_back(std::make_unique<SimtGraph>());
    node->body = graph->bodies.back().get();
    conditional.phGraph_out = &node->body;
    if (out) *out = node.get();
    graph->nodes.push_back(std::move(node));
    return cudaSuccess;
  });
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long) {
  return guarded([&] {
    for (const auto& body : graph->bodies)
      if (static_cast<int>(body->nodes.size()) > settings().largest_loop)
        return set_error(cudaErrorNotSupported, "this device has no loops of so many nodes");
    *exec = new SimtGraphExec{copy_of(*graph)};
    ++counters().graphs;
    return cudaSuccess;
  });
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
  delete exec;
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
  return guarded([&] {
    if (!takes_work(stream)) return cudaErrorInvalidResourceHandle;
    ++counters().graph_launches;
    enqueue(stream, [graph = exec->graph] { launch_graph(*graph); });
    return cudaPeekAtLastError();
  });
}

void cudaGraphSetConditional(cudaGraphConditionalHandle handle, unsigned value) {
  const auto found = conditions.find(handle);
  if (found == conditions.end()) fail("cudaGraphSetConditional of an unknown handle");
  Condition& condition = found->second;
  if (condition.set_in == launch_now->id && condition.value != value) {
    report("threads of one launch set a graph's condition to different values");
  }
  condition.set_in = launch_now->id;
  condition.value = value;
}
