#include "backend/cuda/replay.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <map>
#include <utility>

#include "backend/cuda/graph.h"

namespace kdtw::cuda {
namespace {

// A pass comes up so often before it is captured. A guess at what capturing costs, in launches of the pass one by one:
// no GPU was timed.
constexpr int kMakingCosts = 4;

class CudaReplay : public Replay, private GraphUser {
 public:
  CudaReplay(GraphHost& host, Pool& pool, void* stream, DecoderPass pass, const Weight& head)
      : GraphUser(host, pool, stream, std::move(pass), head), exchange_(pool, stream, kPlaces.bytes) {}

  ~CudaReplay() override { table_.synchronise(stream_); }

  bool takes(size_t tokens, size_t requests) override {
    return tokens <= kMostReplayed && ++kept(tokens, requests).seen > kMakingCosts;
  }

  void answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results) override {
    pool_.use();
    const UseScratch use(host_, scratch_);
    Kept& kept = this->kept(tokens.ids.size(), requests.size());
    send(tokens, requests);
    if (!kept.graph) make(kept, padded_rows(tokens.ids.size()), padded_rows(requests.size()));
    kept.graph->launch(stream_);
    auto* const decided = exchange_.here<KdtwResult>(kPlaces.results);
    const size_t bytes = requests.size() * sizeof(KdtwResult);
    check(table_, table_.copy_out(decided, kept.decided, bytes, stream_), "copy from the device");
    host_.wait();
    std::transform(decided, decided + requests.size(), results.begin(), to_pick);
  }

 private:
  struct Kept {
    int seen = 0;
    std::unique_ptr<Graph> graph;
    const KdtwResult* decided = nullptr;  // where the graph leaves its results
  };
  Kept& kept(size_t tokens, size_t requests) { return kept_[{padded_rows(tokens), padded_rows(requests)}]; }

  // What the host sends, and where it gets the results.
  struct PlacesOf {
    size_t ids, marked, self, cross, wanted, requests, results, bytes;
  };
  static PlacesOf places() {
    Places places;
    PlacesOf at{};
    at.ids = places.take<int32_t>(kMostReplayed);
    at.marked = places.take<uint8_t>(kMostReplayed);
    at.self = places.take<KdtwToken>(kMostReplayed);
    at.cross = places.take<KdtwToken>(kMostReplayed);
    at.wanted = places.take<int32_t>(kMostReplayed);
    at.requests = places.take<KdtwRequest>(kMostReplayed);
    at.results = places.take<KdtwResult>(kMostReplayed);
    at.bytes = places.bytes();
    return at;
  }

  // Tokens that only fill up lie at empty places, and questions that do are about token 0 and ask for nothing.
  void send(const PassTokens& tokens, std::span<const PickRequest> requests) {
    const auto translated = host_.translate(requests);
    std::memset(exchange_.here<std::byte>(0), 0, kPlaces.results);
    std::copy(tokens.ids.begin(), tokens.ids.end(), exchange_.here<int32_t>(kPlaces.ids));
    std::copy(tokens.marked.begin(), tokens.marked.end(), exchange_.here<uint8_t>(kPlaces.marked));
    std::copy(tokens.self.begin(), tokens.self.end(), exchange_.here<TokenAt>(kPlaces.self));
    std::copy(tokens.cross.begin(), tokens.cross.end(), exchange_.here<TokenAt>(kPlaces.cross));
    std::copy(tokens.wanted.begin(), tokens.wanted.end(), exchange_.here<int32_t>(kPlaces.wanted));
    auto* const to = exchange_.here<KdtwRequest>(kPlaces.requests);
    for (int i = 0; i < kMostReplayed; ++i) to[i].draft = -1;
    std::memcpy(to, translated.data(), translated.size_bytes());
    exchange_.send(0, kPlaces.results);
  }

  void make(Kept& kept, int tokens, int requests) {
    kept.graph = std::make_unique<Graph>(table_, stream_, nullptr, [&] {
      const size_t n = tokens;
      const float* hidden = pass_({{exchange_.there<int32_t>(kPlaces.ids), n},
                                   {exchange_.there<uint8_t>(kPlaces.marked), n},
                                   {exchange_.there<TokenAt>(kPlaces.self), n},
                                   {exchange_.there<TokenAt>(kPlaces.cross), n},
                                   {exchange_.there<int32_t>(kPlaces.wanted), static_cast<size_t>(requests)}});
      kept.decided = host_.decide(head_, hidden, exchange_.there<KdtwRequest>(kPlaces.requests), requests);
    });
  }

  inline static const PlacesOf kPlaces = places();

  const Exchange exchange_;
  std::map<std::pair<int, int>, Kept> kept_;  // by tokens and requests
};

}  // namespace

std::unique_ptr<Replay> make_cuda_replay(GraphHost& host, Pool& pool, void* stream, DecoderPass pass,
                                         const Weight& head) {
  return std::make_unique<CudaReplay>(host, pool, stream, std::move(pass), head);
}

}  // namespace kdtw::cuda
