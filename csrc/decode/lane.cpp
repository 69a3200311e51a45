#include "decode/lane.h"

#include <cassert>

#include "core/clock.h"

namespace kdtw {

void Lane::open(std::span<const int> slots, std::span<const Row> rows, const Poll& poll) {
  std::vector<int> closed;
  std::vector<std::vector<int32_t>> sources;
  for (const int slot : slots) {
    if (state_.source_length[slot] > 0) continue;
    closed.push_back(slot);
    sources.push_back(rows[slot].sources[source_]);
  }
  if (closed.empty()) return;
  Stopwatch watch(encode_seconds);
  model_.encode(backend_, state_, work_, closed, sources, poll);
}

void Lane::catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                    const Poll& poll) {
  Stopwatch watch(decode_seconds);
  size_t answered = 0;
  tokens_.clear(), wanted_.clear(), requests_.clear();
  for (size_t q = 0; q < queries.size();) {
    const int slot = queries[q].slot;
    const Row& row = rows[slot];
    size_t last = q;
    while (last + 1 < queries.size() && queries[last + 1].slot == slot) ++last;
    const int end = queries[last].after + 1;
    assert(queries[q].after >= read_[slot]);
    for (int i = read_[slot]; i < end; ++i) {
      if (static_cast<int>(tokens_.size()) == T5::kMaxPass) flush(results, answered, poll);
      if (queries[q].after == i) {
        wanted_.push_back(static_cast<int32_t>(tokens_.size()));
        requests_.push_back(queries[q].request);
        ++q;
      }
      tokens_.push_back({row.tokens[i], slot, i, reads_marks_ ? row.experts[i] : uint8_t{0}});
    }
    read_[slot] = end;
  }
  flush(results, answered, poll);
  ++passes;
}

// One pass of the model over what was put together, and the picks that were asked of it.
void Lane::flush(std::span<PickResult> results, size_t& answered, const Poll& poll) {
  if (tokens_.empty()) return;
  model_.decode(backend_, state_, work_, tokens_, wanted_, poll);
  if (!requests_.empty())
    backend_.pick(model_.head(), work_.gathered, requests_, results.subspan(answered, requests_.size()));
  answered += requests_.size();
  tokens_.clear(), wanted_.clear(), requests_.clear();
}

}  // namespace kdtw
