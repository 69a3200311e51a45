#include "decode/lane.h"

#include <cassert>

#include "core/clock.h"

namespace kdtw {

Lane::Lane(Backend& backend, const Transformer& model, int vocabulary, int source, bool reads_marks, int slots,
           int source_capacity, int target_capacity)
    : operations_(*backend.operations),
      model_(model),
      source_(source),
      reads_marks_(reads_marks),
      state_(model, slots, source_capacity, target_capacity),
      weights_(model.identity()),
      read_(slots, 0),
      head_(vocabulary < model.head().outputs ? model.head().first(vocabulary) : nullptr),
      runner_(backend.make_runner(
          [this](int tokens) -> DecoderPass {
            const auto work = std::make_shared<Workspace>();
            work->reserve(operations_, model_.config(), tokens);
            return [this, work](const PassTokens& placed, const Poll& poll) -> const float* {
              model_.decode(operations_, state_, *work, placed, poll);
              return work->gathered;
            };
          },
          head_ ? *head_ : model.head(), slots)) {}

bool Lane::rest() {
  if (!runner_->rest()) return false;
  state_.weights.reset();
  return true;
}

bool Lane::resume() {
  state_.weights = model_.hold();
  if (weights_ != model_.identity() || !runner_->rest()) return false;
  for (int slot = 0; slot < state_.rows; ++slot) release(slot), state_.prompts[slot].clear();
  passes = 0, encode_seconds = decode_seconds = 0.0;
  return true;
}

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
  model_.open(operations_, state_, encoding_, closed, sources, poll);
}

void Lane::open_soon(std::span<const int> slots, std::span<const Row> rows, const Poll& poll) {
  const bool all_opened = std::all_of(slots.begin(), slots.end(), [this](int slot) { return opened(slot); });
  if (all_opened) return;
  Stopwatch watch(encode_seconds);
  runner_->offer([&] {
    const auto [closed, sources] = unopened(slots, rows);
    model_.open(operations_, state_, encoding_soon_, closed, sources, poll);
  });
}

// Token `position` of the row becomes part of the pass.
void Lane::put(const Row& row, int slot, int position) {
  tokens_.push_back({row.tokens[position], slot, position, reads_marks_ ? row.teacher_index[position] : uint8_t{0}});
}

void Lane::catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                    const Poll& poll) {
  Stopwatch watch(decode_seconds);
  tokens_.clear(), wanted_.clear(), requests_.clear();
  for (const Query& query : queries) {
    int& read = read_[query.slot];
    assert(query.after >= read);
    for (; read <= query.after; ++read) put(rows[query.slot], query.slot, read);
    wanted_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
    requests_.push_back(query.request);
  }
  runner_->answer(model_.list(state_, tokens_, wanted_, lists_), requests_, results, poll);
  ++passes;
}

void Lane::draft(std::span<const Row> rows, std::span<DraftRow> drafts, const DraftRules& rules,
                 const DraftPause& pause, Picks& picks, const Poll& poll) {
  Stopwatch watch(decode_seconds);
  tokens_.clear(), wanted_.clear();
  for (DraftRow& draft : drafts) {
    draft.source_length = state_.source_length[draft.row];
    draft.offset = state_.offset[draft.row];
    int& read = read_[draft.row];
    // Read already where the student had no token left behind drafts that now all stand: it is asked once more.
    read = std::min(read, draft.position);
    for (; read <= draft.position; ++read) put(rows[draft.row], draft.row, read);
    wanted_.push_back(static_cast<int32_t>(tokens_.size()) - 1);
  }
  const PassTokens unread = model_.list(state_, tokens_, wanted_, lists_);
  for (size_t i = 0; i < drafts.size(); ++i) drafts[i].id = unread.ids[wanted_[i]];  // first of all, its prompt's last
  runner_->draft(drafts, rules, pause, unread, picks, poll);
  size_t steps = 0;
  for (size_t i = 0; i < drafts.size(); ++i) {
    read_[drafts[i].row] += static_cast<int>(picks[i].size()) - 1;  // each step behind the first has read one
    steps = std::max(steps, picks[i].size());
  }
  passes += static_cast<int>(steps);
}

}  // namespace kdtw
