// Passes of few tokens as graphs: what would be a launch for each operation is one for the pass.
#pragma once

#include <memory>

#include "backend/backend.h"
#include "backend/cuda/graph_host.h"

namespace kdtw::cuda {

inline constexpr int kMostReplayed = 16;  // tokens of a pass, and questions about it

// Backend::make_replay. Tokens and questions are filled up to 1, 2, 4, 8 or 16; a size that has come up often enough to
// pay for the making becomes a graph.
std::unique_ptr<Replay> make_cuda_replay(GraphHost& host, Pool& pool, void* stream, DecoderPass pass,
                                         const Weight& head);

}  // namespace kdtw::cuda
