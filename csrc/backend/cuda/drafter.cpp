#include "backend/cuda/drafter.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <optional>

#include "backend/cuda/graph.h"
#include "core/error.h"
#include "core/philox.h"

namespace kdtw::cuda {
namespace {

std::mutex setting_mutex;
DraftSetting setting;

class CudaDrafter : public Drafter, private GraphUser {
 public:
  CudaDrafter(GraphHost& host, Pool& pool, void* stream, DecoderPass pass, const Weight& head, const DraftRules& rules,
              int rows, int steps, bool loops, int ahead)
      : GraphUser(host, pool, stream, std::move(pass), head), loops_(loops), ahead_(ahead) {
    for (const DraftStop& stop : rules.stops) stops_.push_back({stop.id, stop.waits_for});
    const int width = padded_rows(rows);
    exchanged_bytes_ = exchanged(width, steps).bytes;
    exchange_.emplace(pool, stream, exchanged_bytes_);

    shared_.stop_count = static_cast<int32_t>(stops_.size());
    shared_.teachers = rules.teachers;
    shared_.seed = rules.seed;
    shared_.stream = static_cast<uint32_t>(RandomStream::kStudent);
    shared_.call_stream = static_cast<uint32_t>(RandomStream::kCall);
    shared_.vocabulary = head.outputs;
    shared_.min_confidence = rules.min_confidence;
    shared_.by_entropy = rules.max_entropy < std::numeric_limits<double>::infinity();
    shared_.max_entropy = rules.max_entropy, shared_.max_uniform = rules.max_uniform;
    shared_.ids = array<int32_t>(width), shared_.wanted = array<int32_t>(width);
    shared_.marked = array<uint8_t>(width);
    shared_.self = array<KdtwToken>(width), shared_.cross = array<KdtwToken>(width);
    banned_ = array<int32_t>(width * stops_.size());
    std::memset(&request_, 0, sizeof request_);
    request_.sampling = sampling_of(rules.sampling);
    request_.check = kKdtwNone, request_.draft = -1;
    request_.want_log_prob = rules.want_log_prob, request_.want_confidence = rules.min_confidence > 0;
  }

  ~CudaDrafter() override { table_.synchronise(stream_); }

  void draft(std::span<const DraftRow> rows, const DraftPause& pause, const float* hidden,
             std::vector<std::vector<PickResult>>& picks) override {
    pool_.use();
    const UseScratch use(host_, scratch_);
    const int width = padded_rows(rows.size());
    int most = 0;
    for (const DraftRow& row : rows) most = std::max(most, row.limit);
    const Exchanged at = exchanged(width, most);
    assert(at.bytes <= exchanged_bytes_);
    KdtwDraft draft = view(width, at);
    send(rows, pause, width, at);
    check(table_, table_.advance(&draft, true, stream_), "advance");
    int steps = 0;
    if (hidden != nullptr) {
      draft.decided = host_.decide(head_, hidden, draft.requests, static_cast<int>(rows.size()));
      check(table_, table_.advance(&draft, false, stream_), "advance");
      steps = 1;
    }
    if (loops_) {
      if (steps < most) graph(width, draft).launch(stream_);
      read(at, width, most);
    } else {
      do {
        for (const int until = std::min(steps + ahead_, most); steps < until; ++steps)
          graph(width, draft).launch(stream_);
        read(at, width, steps);
      } while (exchange_->here<KdtwDraftState>(at.state)->go_on);
    }
    picks.resize(rows.size());
    const auto* const after = exchange_->here<KdtwDraftRow>(at.rows);
    const auto* const results = exchange_->here<KdtwResult>(at.picks);
    for (size_t i = 0; i < rows.size(); ++i) {
      picks[i].clear();
      for (int step = 0; step < after[i].picks; ++step)
        picks[i].push_back(to_pick(results[static_cast<size_t>(step) * width + i]));
    }
  }

 private:
  // What host and device tell each other, in pinned memory and on the device: the host sends what lies before `picks`,
  // the device answers from `state` on.
  struct Exchanged {
    size_t stops, first_allowed, requests, state, rows, picks, bytes;
  };
  Exchanged exchanged(int width, int steps) const {
    Places places;
    Exchanged at{};
    at.stops = places.take<KdtwStop>(stops_.size());
    at.first_allowed = places.take<int32_t>(width * stops_.size());
    at.requests = places.take<KdtwRequest>(width);
    at.state = places.take<KdtwDraftState>(1);
    at.rows = places.take<KdtwDraftRow>(width);
    at.picks = places.take<KdtwResult>(static_cast<size_t>(width) * steps);
    at.bytes = places.bytes();
    return at;
  }

  KdtwDraft view(int width, const Exchanged& at) const {
    KdtwDraft draft = shared_;
    draft.width = width;
    draft.stops = exchange_->there<KdtwStop>(at.stops);
    draft.first_allowed = exchange_->there<int32_t>(at.first_allowed);
    draft.requests = exchange_->there<KdtwRequest>(at.requests);
    draft.state = exchange_->there<KdtwDraftState>(at.state);
    draft.rows = exchange_->there<KdtwDraftRow>(at.rows);
    draft.picks = exchange_->there<KdtwResult>(at.picks);
    return draft;
  }

  void send(std::span<const DraftRow> rows, const DraftPause& pause, int width, const Exchanged& at) {
    std::memset(exchange_->here<std::byte>(0), 0, at.picks);
    std::copy(stops_.begin(), stops_.end(), exchange_->here<KdtwStop>(at.stops));
    auto& state = *exchange_->here<KdtwDraftState>(at.state);
    std::copy(pause.waiting.begin(), pause.waiting.end(), state.waiting);
    state.batch = pause.batch, state.at_finish = pause.at_finish;
    auto* const to = exchange_->here<KdtwDraftRow>(at.rows);
    for (int i = 0; i < width; ++i) {
      to[i].stand = kKdtwFinished;
      KdtwRequest& request = exchange_->here<KdtwRequest>(at.requests)[i];
      std::memcpy(&request, &request_, sizeof request);
      request.banned = banned_ + i * stops_.size();
    }
    for (size_t i = 0; i < rows.size(); ++i) {
      const DraftRow& row = rows[i];
      std::copy(row.first_allowed.begin(), row.first_allowed.end(),
                exchange_->here<int32_t>(at.first_allowed) + i * stops_.size());
      to[i].key = row.key, to[i].keep_logits = row.keep_logits;
      to[i].id = row.id, to[i].marked = row.marked;
      to[i].row = row.self.row, to[i].position = row.self.position, to[i].source_length = row.cross.length;
      to[i].limit = row.limit, to[i].waits_at_limit = row.waits_at_limit;
      to[i].unseen_by = row.unseen_by, to[i].first_call = row.first_call;
      to[i].stand = kKdtwDrafting;
    }
    exchange_->send(0, at.picks);
  }

  // Waits for the rows and the picks of so many steps.
  void read(const Exchanged& at, int width, int steps) {
    exchange_->fetch(at.state, at.picks + static_cast<size_t>(width) * steps * sizeof(KdtwResult) - at.state);
    host_.wait();
  }

  // A step of so many rows: the decoder over what advance() left, the decision, and advance().
  const Graph& graph(int width, const KdtwDraft& draft) {
    auto& made = graphs_[width];
    if (!made) {
      made = std::make_unique<Graph>(table_, stream_, loops_ ? &draft.state->go_on : nullptr, [&] {
        const size_t n = width;
        static_assert(sizeof(TokenAt) == sizeof(KdtwToken));
        const float* hidden = pass_({{draft.ids, n},
                                     {draft.marked, n},
                                     {reinterpret_cast<const TokenAt*>(draft.self), n},
                                     {reinterpret_cast<const TokenAt*>(draft.cross), n},
                                     {draft.wanted, n}});
        KdtwDraft step = draft;
        step.decided = host_.decide(head_, hidden, draft.requests, width);
        check(table_, table_.advance(&step, false, stream_), "advance");
      });
    }
    return *made;
  }

  // Device memory that lasts as long as the drafter.
  template <typename T>
  T* array(size_t count) {
    memory_.push_back(pool_.allocate(std::max<size_t>(count * sizeof(T), 1), stream_));
    return static_cast<T*>(memory_.back().get());
  }

  std::vector<KdtwStop> stops_;
  const bool loops_;
  const int ahead_;
  std::vector<std::shared_ptr<void>> memory_;  // on the device
  size_t exchanged_bytes_ = 0;
  std::optional<Exchange> exchange_;
  int32_t* banned_ = nullptr;                     // [width, stops], on the device
  KdtwDraft shared_{};                            // what all widths share
  KdtwRequest request_;                           // what all rows ask
  std::map<int, std::unique_ptr<Graph>> graphs_;  // by width
};

}  // namespace

void use_drafting(const std::string& how, int steps) {
  const std::map<std::string, DraftSetting::How> known = {{"auto", DraftSetting::kAuto},
                                                          {"loop", DraftSetting::kLoop},
                                                          {"ahead", DraftSetting::kAhead},
                                                          {"host", DraftSetting::kHost}};
  const auto found = known.find(how);
  require(found != known.end(), "unknown way to draft '", how, "'; known are 'auto', 'loop', 'ahead' and 'host'");
  require(steps >= 1, "steps must be 1 or more, got ", steps);
  const std::lock_guard lock(setting_mutex);
  setting = {found->second, steps};
}

DraftSetting draft_setting() {
  const std::lock_guard lock(setting_mutex);
  return setting;
}

std::unique_ptr<Drafter> make_cuda_drafter(GraphHost& host, Pool& pool, void* stream, DecoderPass pass,
                                           const Weight& head, const DraftRules& rules, int rows, int steps) {
  const DraftSetting wanted = draft_setting();
  if (wanted.how == DraftSetting::kHost) return nullptr;
  const bool loops = wanted.how != DraftSetting::kAhead && pool.runs_loops();
  if (wanted.how == DraftSetting::kLoop && !loops)
    throw std::runtime_error("graphs with loops do not run on this device; draft 'ahead' instead");
  return std::make_unique<CudaDrafter>(host, pool, stream, std::move(pass), head, rules, rows, steps, loops,
                                       wanted.steps);
}

}  // namespace kdtw::cuda
