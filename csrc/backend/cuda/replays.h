// Short passes as graphs: one launch for the pass instead of one for each operation.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <tuple>

#include "backend/cuda/graph.h"
#include "backend/cuda/graph_host.h"
#include "backend/runner.h"

namespace kdtw::cuda {

inline constexpr int kMostReplayed = 16;  // most tokens of a pass, and most requests about it

// The numbers of tokens and requests are each rounded up to 1, 2, 4, 8 or 16, and each pair that occurs becomes a
// graph: a few for all calls of a decoder.
class Replays : private GraphUser {
 public:
  Replays(GraphHost& host, DecoderPass pass, const Weight& head)
      : GraphUser(host, std::move(pass), head), exchange_(pool_, stream_, kPlaces.bytes) {}
  ~Replays() { table_.synchronise(stream_); }

  // As Runner::answer, for passes of up to kMostReplayed tokens.
  void answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results);

 private:
  struct Kept {
    std::unique_ptr<Graph> graph;
    const PickResult* decided = nullptr;  // where the graph leaves its results
  };
  Kept& kept(size_t tokens, std::span<const PickRequest> requests) {
    return kept_[{padded_rows(tokens), padded_rows(requests.size()), sampling_of(requests)}];
  }

  // Offsets in the exchange of host and device: what the host sends, and at the end the results.
  struct Places {
    size_t ids, marked, self, cross, wanted, requests, results, bytes;
  };
  static Places places();
  static const Places kPlaces;

  void send(const PassTokens& tokens, std::span<const PickRequest> requests);
  void make(Kept& kept, int tokens, int requests, KdtwSampling sampling);

  const Exchange exchange_;
  std::map<std::tuple<int, int, KdtwSampling>, Kept> kept_;  // by tokens, requests and how they sample
};

}  // namespace kdtw::cuda
