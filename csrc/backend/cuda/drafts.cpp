#include "backend/cuda/drafts.h"

#include <algorithm>
#include <cstring>

namespace kdtw::cuda {

Drafts::Drafts(GraphHost& host, DecoderPass pass, const Weight& head, const DraftRules& rules, int rows, bool loops,
               bool only_loops, int ahead)
    : GraphUser(host, std::move(pass), head),
      stop_count_(rules.stop_count),
      loops_(loops),
      only_loops_(only_loops),
      ahead_(ahead),
      exchange_(pool_, stream_, places(padded_rows(rows), kLongestDraft).bytes) {
  const int width = padded_rows(rows);
  shared_.banned = array<int32_t>(static_cast<size_t>(width) * stop_count_);
  shared_.ids = array<int32_t>(width), shared_.wanted = array<int32_t>(width);
  shared_.marked = array<uint8_t>(width);
  shared_.self = array<TokenAt>(width), shared_.cross = array<TokenAt>(width);
  shared_.requests = array<PickRequest>(width);
}

void Drafts::draft(std::span<DraftRow> rows, const DraftRules& rules, const DraftPause& pause, const float* hidden,
                   Picks& picks) {
  const auto here = pool_.use();
  const UseScratch use(host_, scratch_);
  const int width = padded_rows(rows.size());
  int most = 0;
  KdtwSampling sampling = kKdtwGreedy;
  for (const DraftRow& row : rows) {
    most = std::max(most, most_steps(rules, row));
    sampling = std::max(sampling, kdtw_sampling(row.sampling, Check::kNone));
  }
  most = std::min({most, pause.most_steps, kLongestDraft});
  const Places at = places(width, most);
  KdtwDraft draft = view(rules, width, at);
  send(rows, rules, pause, width, at);
  check(table_, table_.advance(&draft, true, stream_), "advance");
  int steps = 0;
  if (hidden != nullptr) {
    draft.decided = host_.decide(head_, hidden, draft.requests, static_cast<int>(rows.size()), sampling);
    check(table_, table_.advance(&draft, false, stream_), "advance");
    steps = 1;
  }
  const Graph* const whole = loops_ && steps < most ? loop(width, sampling, draft) : nullptr;
  if (whole != nullptr) whole->launch(stream_);
  if (loops_) {
    read(at, width, most);
  } else {
    do {
      for (const int until = std::min(steps + ahead_, most); steps < until; ++steps)
        graph(width, sampling, draft).launch(stream_);
      read(at, width, steps);
    } while (steps < most && exchange_.here<KdtwDraftState>(at.state)->go_on);
  }
  if (picks.size() < rows.size()) picks.resize(rows.size());
  const auto* const after = exchange_.here<DraftRow>(at.rows);
  const auto* const results = exchange_.here<PickResult>(at.picks);
  for (size_t i = 0; i < rows.size(); ++i) {
    const int32_t* const first_allowed = rows[i].first_allowed;  // the host's
    rows[i] = after[i];
    rows[i].first_allowed = first_allowed;
    picks[i].clear();
    for (int step = 0; step < after[i].picks; ++step)
      picks[i].push_back(results[static_cast<size_t>(step) * width + i]);
  }
}

Drafts::Places Drafts::places(int width, int steps) const {
  Layout layout;
  Places at{};
  at.stops = layout.take<StopToken>(stop_count_);
  at.first_allowed = layout.take<int32_t>(static_cast<size_t>(width) * stop_count_);
  at.state = layout.take<KdtwDraftState>(1);
  at.rows = layout.take<DraftRow>(width);
  at.picks = layout.take<PickResult>(static_cast<size_t>(width) * steps);
  at.bytes = layout.bytes();
  return at;
}

KdtwDraft Drafts::view(const DraftRules& rules, int width, const Places& at) const {
  KdtwDraft draft = shared_;
  draft.rules = rules;
  draft.rules.stops = exchange_.there<StopToken>(at.stops);
  draft.width = width;
  draft.state = exchange_.there<KdtwDraftState>(at.state);
  draft.rows = exchange_.there<DraftRow>(at.rows);
  draft.picks = exchange_.there<PickResult>(at.picks);
  return draft;
}

void Drafts::send(std::span<const DraftRow> rows, const DraftRules& rules, const DraftPause& pause, int width,
                  const Places& at) {
  std::memset(exchange_.here<std::byte>(0), 0, at.picks);
  std::copy(rules.stops, rules.stops + stop_count_, exchange_.here<StopToken>(at.stops));
  exchange_.here<KdtwDraftState>(at.state)->pause = pause;
  auto* const to = exchange_.here<DraftRow>(at.rows);
  for (int i = 0; i < width; ++i) {
    if (i >= static_cast<int>(rows.size())) {
      to[i].stand = kFinished;
      continue;
    }
    const size_t first = at.first_allowed + sizeof(int32_t) * i * stop_count_;
    std::copy(rows[i].first_allowed, rows[i].first_allowed + stop_count_, exchange_.here<int32_t>(first));
    to[i] = rows[i];
    to[i].first_allowed = exchange_.there<int32_t>(first);
  }
  exchange_.send(0, at.picks);
}

// Fetches the state, the rows and the picks of so many steps, and waits for them.
void Drafts::read(const Places& at, int width, int steps) {
  exchange_.fetch(at.state, at.picks + static_cast<size_t>(width) * steps * sizeof(PickResult) - at.state);
  host_.wait();
}

// The graph of a draft. Null, and no loops from now on, where the device that runs small loops refuses this one.
const Graph* Drafts::loop(int width, KdtwSampling sampling, const KdtwDraft& draft) {
  try {
    return &graph(width, sampling, draft);
  } catch (const std::runtime_error&) {
    if (only_loops_) throw;
    graphs_.clear();
    loops_ = false;
    pool_.no_loops();
    return nullptr;
  }
}

// The graph of a step: the decoder reads what advance() has prepared, the picks are decided, and advance() takes them.
const Graph& Drafts::graph(int width, KdtwSampling sampling, const KdtwDraft& draft) {
  auto& made = graphs_[{width, sampling}];
  if (!made) {
    made = std::make_unique<Graph>(table_, stream_, loops_ ? &draft.state->go_on : nullptr, [&] {
      const size_t n = width;
      const float* hidden =
          pass_({{draft.ids, n}, {draft.marked, n}, {draft.self, n}, {draft.cross, n}, {draft.wanted, n}}, [] {});
      KdtwDraft step = draft;
      step.decided = host_.decide(head_, hidden, draft.requests, width, sampling);
      check(table_, table_.advance(&step, false, stream_), "advance");
    });
  }
  return *made;
}

}  // namespace kdtw::cuda
