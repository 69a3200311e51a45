// The CUDA device's runner: drafts and short passes as graphs, and work beside them on a second stream.
#pragma once

#include <memory>
#include <string>

#include "backend/cuda/graph_host.h"
#include "backend/runner.h"

namespace kdtw::cuda {

// How sessions that begin from now on draft:
//   "loop"   a graph repeats a step until the draft ends; the host waits once a draft
//   "ahead"  the host launches a graph of one step `steps` times before it looks whether the draft has ended
//   "host"   no graphs: the host launches every kernel of every step, and of the teacher's passes too
//   "auto"   "loop" where the device can, else "ahead"
// std::invalid_argument for other words and for less than one step.
void use_drafting(const std::string& how, int steps);

std::unique_ptr<Runner> make_cuda_runner(Operations& operations, GraphHost& host, const MakePass& make_pass,
                                         const Weight& head, int rows);

}  // namespace kdtw::cuda
