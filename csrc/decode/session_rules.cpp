// What a row's options say of its tokens and of its end: rules on picks, and when it stops.
#include <algorithm>

#include "decode/session.h"

namespace kdtw {

// What the row's rules mean for output `position` of a model that reads this of its sources.
TokenEdits& Session::edits_of(const Row& row, const Transformer& model, int source, int position) {
  TokenEdits& edits = edits_.emplace_back();
  row.read_by(model.config().has_encoder(), source, position, read_);
  find_edits(*row.options.rules, read_, position, edits);
  return edits;
}

void Session::stop_late_rows() {
  const auto now = Clock::now();
  for (const int slot : running_) {
    Row& row = rows_[slot];
    if (row.options.max_seconds <= 0 || !row.running()) continue;
    if (std::chrono::duration<double>(now - row.added).count() < row.options.max_seconds) continue;
    // A method that checks everything does not let unchecked drafts out.
    if (method_.accept.checks_all && row.drafts() > 0) cut(slot, row.draft_begin());
    row.finish = Finish::kTime;
  }
}

// Tokens of the row that nothing can take back any more.
int Session::settled(const Row& row) const {
  const bool final = row.check == Check::kNone || !row.running();
  return final ? static_cast<int>(row.tokens.size()) : row.draft_begin();
}

// Puts the row's tokens that nothing can take back any more into settled_.
void Session::hand_tokens(Row& row) {
  if (row.finish == Finish::kFault) return;
  for (const int end = settled(row); row.streamed < end; ++row.streamed)
    settled_.push_back({row.index, row.streamed - 1, row.tokens[row.streamed], row.owners[row.streamed]});
}

// Ends rows behind the first settled token at which they stop: what comes out is what would have come, cut there.
void Session::stop_rows() {
  for (const int slot : running_) {
    Row& row = rows_[slot];
    const auto& [stops, find] = row.options.stops;
    const int end = settled(row);
    if (row.finish == Finish::kFault || !row.options.stops.any() || row.looked_at >= end) continue;
    const auto first = row.tokens.begin() + row.looked_at, last = row.tokens.begin() + end;
    const auto found = std::find_first_of(first, last, stops.begin(), stops.end());
    int kept = found == last ? -1 : static_cast<int>(found - row.tokens.begin()) + 1;
    if (find) {
      const int count = (kept < 0 ? end : kept) - row.own_begin;
      const int wanted = (*find)({row.tokens.data() + row.own_begin, static_cast<size_t>(count)});
      if (wanted >= 0) kept = row.own_begin + std::clamp(wanted, 1, count);
    }
    row.looked_at = end;
    if (kept < 0) continue;
    cut(slot, kept);
    row.finish = Finish::kStop;
  }
}

// Discards what stands from this index on, drafts or not, of a row that ends.
void Session::cut(int slot, int length) {
  Row& row = rows_[slot];
  for (size_t i = length; i < row.owners.size(); ++i) {
    row.accepted -= row.owners[i] == Owner::kAccepted;
    row.rolled_back += row.owners[i] == Owner::kAccepted || row.owners[i] == Owner::kStudent;
  }
  truncate(slot, length);
  row.draft.drafts = 0;
}

}  // namespace kdtw
