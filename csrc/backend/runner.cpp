// The default runner: a loop on the host over the rules of core/draft.h.
#include "backend/runner.h"

#include <algorithm>
#include <numeric>

#include "core/token_rules.h"
#include "core/top_picks.h"

namespace kdtw {

void Runner::offer(const std::function<void()>&) {}

void Runner::answer(const PassTokens& tokens, std::span<const PickRequest> requests, std::span<PickResult> results,
                    const Poll& poll) {
  size_t answered = 0;
  for (size_t begin = 0; begin < tokens.ids.size(); begin += kMostTokens) {
    const size_t count = std::min<size_t>(kMostTokens, tokens.ids.size() - begin);
    wanted_.clear();
    for (const int32_t t : tokens.wanted.subspan(answered)) {
      if (t >= static_cast<int32_t>(begin + count)) break;
      wanted_.push_back(t - static_cast<int32_t>(begin));
    }
    const float* hidden =
        pass_(operations_.place({tokens.ids.subspan(begin, count),
                                 tokens.marked.empty() ? tokens.marked : tokens.marked.subspan(begin, count),
                                 tokens.self.subspan(begin, count), tokens.cross.subspan(begin, count), wanted_}),
              poll);
    const size_t n = wanted_.size();
    if (n > 0) operations_.pick(head_, hidden, requests.subspan(answered, n), results.subspan(answered, n));
    answered += n;
  }
}

void Runner::draft(std::span<DraftRow> rows, const DraftRules& rules, const DraftPause& pause, const PassTokens& unread,
                   Picks& picks, const Poll& poll) {
  if (picks.size() < rows.size()) picks.resize(rows.size());
  for (auto& of_row : picks) of_row.clear();
  drafting_.resize(rows.size());
  std::iota(drafting_.begin(), drafting_.end(), size_t{0});
  banned_.resize(rows.size() * rules.stop_count);
  DraftPause now = pause;  // whose numbers of waiting rows grow
  DraftCount count{};
  PassTokens tokens = unread;
  const auto interrupted = [this] { return bell_ != nullptr && bell_->waits(); };
  for (bool called = false; count.steps == 0 || (goes_on(pause, count, called) && !interrupted());) {
    requests_.clear();
    for (const size_t i : drafting_) {
      requests_.push_back(ask(rules, rows[i], &banned_[i * rules.stop_count]));
      if (rows[i].top != nullptr) rows[i].top->put(requests_.back(), rules.top_count);
      RuledDraft* const ruled = rows[i].ruled;
      if (ruled == nullptr) continue;
      find_edits(*ruled->rules, ruled->read, rows[i].position, ruled->edits);
      ruled->edits.put(requests_.back());
    }
    results_.resize(requests_.size());
    answer(tokens, requests_, results_, poll);
    for (size_t i = 0; i < drafting_.size(); ++i) {
      DraftRow& row = rows[drafting_[i]];
      picks[drafting_[i]].push_back(results_[i]);
      const int position = row.position;
      take(rules, row, results_[i]);
      if (row.ruled != nullptr && row.position > position) row.ruled->read.push_back(row.id);
      count.finished += row.stand == kFinished;
      if (row.stand <= 0) continue;
      ++now.waiting[row.stand - 1];
      count.unseen += row.unseen_by >> (row.stand - 1) & 1;
    }
    std::erase_if(drafting_, [&](size_t i) { return rows[i].stand != kDrafting; });
    count.drafting = static_cast<int32_t>(drafting_.size());
    ++count.steps;
    for (int k = 0; k < rules.teachers; ++k) called |= call_now(now.waiting[k], count.drafting, pause.batch);

    ids_.clear(), step_wanted_.clear(), self_.clear(), cross_.clear();
    for (const size_t i : drafting_) {
      const DraftRow& row = rows[i];
      step_wanted_.push_back(static_cast<int32_t>(ids_.size()));
      ids_.push_back(row.id);
      self_.push_back({row.row, row.offset + row.position, row.offset + row.position + 1});
      cross_.push_back({row.row, row.position, row.source_length});
    }
    tokens = {ids_, {}, self_, cross_, step_wanted_};
  }
}

}  // namespace kdtw
