// Passes of few tokens as graphs: what would be a launch for each operation is one for the pass.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <utility>

#include "backend/cuda/graph.h"
#include "backend/cuda/graph_host.h"
#include "backend/runner.h"

namespace kdtw::cuda {

inline constexpr int kMostReplayed = 16;  // tokens of a pass, and questions about it

// Tokens and questions are filled up to 1, 2, 4, 8 or 16; a size that has come up often enough to pay for the making
// becomes a graph.
class Replays : private GraphUser {
 public:
  Replays(GraphHost& host, DecoderPass pass, const Weight& head)
      : GraphUser(host, std::move(pass), head), exchange_(pool_, stream_, kPlaces.bytes) {}
  ~Replays() { table_.synchronise(stream_); }

  // Whether this pass is one of them; who is told no computes it another way.
  bool takes(size_t tokens, size_t requests);
  // The pass over host lists, and requests[i] decided at tokens.wanted[i].
  void answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results);

 private:
  struct Kept {
    int seen = 0;
    std::unique_ptr<Graph> graph;
    const PickResult* decided = nullptr;  // where the graph leaves its results
  };
  Kept& kept(size_t tokens, size_t requests) { return kept_[{padded_rows(tokens), padded_rows(requests)}]; }

  // What the host sends, and where it gets the results.
  struct Places {
    size_t ids, marked, self, cross, wanted, requests, results, bytes;
  };
  static Places places();
  static const Places kPlaces;

  void send(const PassTokens& tokens, std::span<const PickRequest> requests);
  void make(Kept& kept, int tokens, int requests);

  const Exchange exchange_;
  std::map<std::pair<int, int>, Kept> kept_;  // by tokens and requests
};

}  // namespace kdtw::cuda
