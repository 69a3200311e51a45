#include "decode/lane.h"

#include <cassert>
#include <utility>

#include "core/clock.h"

namespace kdtw {

Lane::Unopened Lane::unopened(std::span<const int> slots, std::span<const Row> rows) const {
  Unopened found;
  for (const int slot : slots) {
    if (opened(slot)) continue;
    found.slots.push_back(slot);
    found.sources.push_back(rows[slot].sources[source_]);
  }
  return found;
}

void Lane::open(std::span<const int> slots, std::span<const Row> rows, const Poll& poll) {
  const auto [closed, sources] = unopened(slots, rows);
  if (closed.empty()) return;
  Stopwatch watch(encode_seconds);
  model_.encode(backend_, state_, work_, closed, sources, poll);
}

void Lane::open_aside(std::span<const int> slots, std::span<const Row> rows, const Poll& poll) {
  const auto [closed, sources] = unopened(slots, rows);
  if (closed.empty()) return;
  Stopwatch watch(encode_seconds);
  put_aside_ = true;
  backend_.aside([&, &closed = closed, &sources = sources] {
    model_.encode(backend_, state_, aside_work_, closed, sources, poll);
  });
}

void Lane::catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                    const Poll& poll) {
  Stopwatch watch(decode_seconds);
  if (std::exchange(put_aside_, false)) backend_.join();
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
      tokens_.push_back({row.tokens[i], slot, i, reads_marks_ ? row.teacher_index[i] : uint8_t{0}});
    }
    read_[slot] = end;
  }
  flush(results, answered, poll);
  ++passes;
}

// For graphs: the model's pass in memory that stays where it is.
DecoderPass Lane::pass_in(Workspace& work) {
  return [this, &work](const PassTokens& placed) -> const float* {
    model_.decode(backend_, state_, work, placed, [] {});
    return work.gathered;
  };
}

void Lane::make_replay() {
  replay_ = backend_.make_replay(pass_in(replay_work_), model_.head());
  if (replay_) replay_work_.reserve(backend_, model_.config(), backend_.most_replayed());
}

bool Lane::make_drafter(const DraftRules& rules, int slots, int steps) {
  drafter_ = backend_.make_drafter(pass_in(draft_work_), model_.head(), rules, slots, steps);
  if (drafter_) draft_work_.reserve(backend_, model_.config(), 2 * slots);
  return drafter_ != nullptr;
}

void Lane::draft(std::span<const Row> rows, std::span<DraftRow> drafts, const DraftPause& pause,
                 std::vector<std::vector<PickResult>>& picks, const Poll& poll) {
  Stopwatch watch(decode_seconds);
  tokens_.clear(), wanted_.clear();
  for (DraftRow& draft : drafts) {
    const int slot = draft.self.row;
    const Row& row = rows[slot];
    const int newest = static_cast<int>(row.tokens.size()) - 1;
    for (int i = read_[slot]; i <= newest; ++i)
      tokens_.push_back({row.tokens[i], slot, i, reads_marks_ ? row.teacher_index[i] : uint8_t{0}});
    wanted_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    draft.id = tokens_.back().id, draft.marked = tokens_.back().marked;
    draft.self = {slot, newest, newest + 1};
    draft.cross = {slot, newest, state_.source_length[slot]};
  }
  const bool unread = tokens_.size() > drafts.size();
  poll();
  if (unread) model_.decode(backend_, state_, work_, tokens_, wanted_, poll);
  drafter_->draft(drafts, pause, unread ? work_.gathered : nullptr, picks);
  size_t steps = 0;
  for (size_t i = 0; i < drafts.size(); ++i) {
    read_[drafts[i].self.row] = drafts[i].self.position + static_cast<int>(picks[i].size());
    steps = std::max(steps, picks[i].size());
  }
  passes += static_cast<int>(steps);
}

// One pass of the model over what was put together, and the picks that were asked of it.
void Lane::flush(std::span<PickResult> results, size_t& answered, const Poll& poll) {
  if (tokens_.empty()) return;
  const auto here = results.subspan(answered, requests_.size());
  if (replay_ && !requests_.empty() && replay_->takes(tokens_.size(), requests_.size())) {
    poll();
    replay_->answer(model_.list(state_, tokens_, wanted_, lists_), requests_, here);
  } else {
    model_.decode(backend_, state_, work_, tokens_, wanted_, poll);
    if (!requests_.empty()) backend_.pick(model_.head(), work_.gathered, requests_, here);
  }
  answered += requests_.size();
  tokens_.clear(), wanted_.clear(), requests_.clear();
}

}  // namespace kdtw
