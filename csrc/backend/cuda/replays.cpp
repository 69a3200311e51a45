#include "backend/cuda/replays.h"

#include <algorithm>
#include <cstring>

namespace kdtw::cuda {

const Replays::Places Replays::kPlaces = Replays::places();

Replays::Places Replays::places() {
  Layout layout;
  Places at{};
  at.ids = layout.take<int32_t>(kMostReplayed);
  at.marked = layout.take<uint8_t>(kMostReplayed);
  at.self = layout.take<TokenAt>(kMostReplayed);
  at.cross = layout.take<TokenAt>(kMostReplayed);
  at.wanted = layout.take<int32_t>(kMostReplayed);
  at.requests = layout.take<PickRequest>(kMostReplayed);
  at.results = layout.take<PickResult>(kMostReplayed);
  at.bytes = layout.bytes();
  return at;
}

void Replays::answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results) {
  const auto here = pool_.use();
  const UseScratch use(host_, scratch_);
  Kept& kept = this->kept(tokens.ids.size(), requests);
  send(tokens, requests);
  if (!kept.graph) make(kept, padded_rows(tokens.ids.size()), padded_rows(requests.size()), sampling_of(requests));
  kept.graph->launch(stream_);
  auto* const decided = exchange_.here<PickResult>(kPlaces.results);
  const size_t bytes = requests.size() * sizeof(PickResult);
  check(table_, table_.copy_out(decided, kept.decided, bytes, stream_), "copy from the device");
  host_.wait();
  std::copy(decided, decided + requests.size(), results.begin());
}

// Tokens that only fill up the pass have length 0, and requests that do are about token 0 and ask for nothing.
void Replays::send(const PassTokens& tokens, std::span<const PickRequest> requests) {
  const auto staged = host_.stage(requests);
  std::memset(exchange_.here<std::byte>(0), 0, kPlaces.results);
  std::copy(tokens.ids.begin(), tokens.ids.end(), exchange_.here<int32_t>(kPlaces.ids));
  std::copy(tokens.marked.begin(), tokens.marked.end(), exchange_.here<uint8_t>(kPlaces.marked));
  std::copy(tokens.self.begin(), tokens.self.end(), exchange_.here<TokenAt>(kPlaces.self));
  std::copy(tokens.cross.begin(), tokens.cross.end(), exchange_.here<TokenAt>(kPlaces.cross));
  std::copy(tokens.wanted.begin(), tokens.wanted.end(), exchange_.here<int32_t>(kPlaces.wanted));
  auto* const to = exchange_.here<PickRequest>(kPlaces.requests);
  std::fill(to, to + kMostReplayed, PickRequest{});
  std::copy(staged.begin(), staged.end(), to);
  exchange_.send(0, kPlaces.results);
}

void Replays::make(Kept& kept, int tokens, int requests, KdtwSampling sampling) {
  kept.graph = std::make_unique<Graph>(table_, stream_, nullptr, [&] {
    const size_t n = tokens;
    const float* hidden = pass_({{exchange_.there<int32_t>(kPlaces.ids), n},
                                 {exchange_.there<uint8_t>(kPlaces.marked), n},
                                 {exchange_.there<TokenAt>(kPlaces.self), n},
                                 {exchange_.there<TokenAt>(kPlaces.cross), n},
                                 {exchange_.there<int32_t>(kPlaces.wanted), static_cast<size_t>(requests)}},
                                [] {});
    kept.decided = host_.decide(head_, hidden, exchange_.there<PickRequest>(kPlaces.requests), requests, sampling);
  });
}

}  // namespace kdtw::cuda
