#include "decode/decoder.h"

#include <algorithm>
#include <chrono>
#include <optional>

#include "core/error.h"
#include "core/philox.h"
#include "decode/lane.h"

namespace kdtw {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// One generate call: rows, lanes and the loop over them.
class Loop {
 public:
  Loop(Backend& backend, const T5& student, const T5* teacher, const Method& method, const SpecialTokens& special,
       const GenerateRequest& request)
      : backend_(backend),
        student_model_(student),
        teacher_model_(teacher),
        method_(method),
        special_(special),
        request_(request),
        start_(Clock::now()) {
    const int R = static_cast<int>(request.student_sources.size());
    const int capacity = request.max_new_tokens + 1;
    rows_.resize(R);
    for (int r = 0; r < R; ++r) prepare_row(r);
    student_state_.emplace(backend, student.config(), R, longest(request.student_sources), capacity);
    student_.emplace(backend, student, *student_state_, student_work_, true, method.marks_teacher);
    if (teacher == nullptr) return;
    const auto& sources = request.teacher_sources.empty() ? request.student_sources : request.teacher_sources;
    teacher_state_.emplace(backend, teacher->config(), R, longest(sources), capacity);
    teacher_.emplace(backend, *teacher, *teacher_state_, teacher_work_, request.teacher_sources.empty(), false);
    if (method.accept.check == Check::kRejection) {
      const size_t slots = static_cast<size_t>(R) * method.call.draft_length;
      draft_logits_ = backend.allocate(slots * student.config().vocabulary);
    }
  }

  GenerateResult run() {
    std::vector<int> group(rows_.size());
    for (size_t r = 0; r < group.size(); ++r) group[r] = static_cast<int>(r);
    student_->open(group, rows_, request_.poll);
    for (auto& row : rows_) settle(row);
    for (;;) {
      if (request_.poll) request_.poll();
      if (out_of_time()) break;
      // Whoever can draft does; the teacher is called when nobody can, for all who wait, in one pass.
      select(group, [](const Row& row) { return row.running() && !row.waiting; });
      if (!group.empty()) {
        draft(group);
      } else {
        select(group, [](const Row& row) { return row.running(); });
        if (group.empty()) break;
        call(group);
      }
      for (auto& row : rows_) stream(row);
    }
    return result();
  }

 private:
  static int longest(const std::vector<std::vector<int32_t>>& sources) {
    size_t length = 1;
    for (const auto& source : sources) length = std::max(length, source.size());
    return static_cast<int>(length);
  }

  template <typename Predicate>
  void select(std::vector<int>& group, Predicate&& predicate) const {
    group.clear();
    for (size_t r = 0; r < rows_.size(); ++r)
      if (predicate(rows_[r])) group.push_back(static_cast<int>(r));
  }

  void prepare_row(int r) {
    Row& row = rows_[r];
    row.key = request_.row_keys[r];
    row.student_source = request_.student_sources[r];
    if (!request_.teacher_sources.empty()) row.teacher_source = request_.teacher_sources[r];
    row.ledger = request_.ledgers[r];
    append(row, special_.start, Owner::kNone);
    for (const int32_t token : request_.forced_tokens) append(row, token, Owner::kForced);
    row.draft_begin = static_cast<int>(row.tokens.size());
  }

  void append(Row& row, int32_t token, Owner owner) {
    row.tokens.push_back(token);
    row.owners.push_back(owner);
    if (request_.want_log_probs) {
      row.student_log_probs.resize(row.tokens.size(), std::numeric_limits<float>::quiet_NaN());
      row.teacher_log_probs.resize(row.tokens.size(), std::numeric_limits<float>::quiet_NaN());
    }
  }

  void truncate(int r, int length) {
    Row& row = rows_[r];
    row.tokens.resize(length);
    row.owners.resize(length);
    if (request_.want_log_probs) {
      row.student_log_probs.resize(length);
      row.teacher_log_probs.resize(length);
    }
    student_->rewind(r, length);
    if (teacher_) teacher_->rewind(r, length);
  }

  bool is_end(int32_t token) const {
    return std::find(special_.end.begin(), special_.end.end(), token) != special_.end.end();
  }

  // Decides whether the row ends, waits for the teacher, or goes on drafting.
  void settle(Row& row) {
    const int room = request_.max_new_tokens - row.outputs();
    const bool ended = row.outputs() > 0 && is_end(row.tokens.back());
    const bool drafting = row.drafts() > 0;
    if (method_.accept.checks_all) {
      if (drafting && (ended || row.drafts() >= draft_limit(method_, room + row.drafts()))) {
        row.waiting = true;
      } else if (ended || room == 0) {
        row.finish = ended ? Finish::kEnd : Finish::kLength;
      } else if (!drafting && draft_limit(method_, room) == 0) {
        row.waiting = true;
      }
      return;
    }
    if (ended || room == 0) {
      row.finish = ended ? Finish::kEnd : Finish::kLength;
    } else if (method_.call.draft_length > 0 && row.drafts() >= method_.call.draft_length) {
      row.waiting = true;
    }
  }

  // What must not be picked at this row's next position.
  std::span<const int32_t> banned(const Row& row, bool tau_allowed) { return banned_at(row.outputs(), tau_allowed); }

  std::span<const int32_t> banned_at(int position, bool tau_allowed) {
    const bool no_end = position < request_.min_new_tokens;
    auto& list = ban_lists_[no_end][tau_allowed];
    if (!list) {
      list.emplace();
      if (no_end) *list = special_.end;
      if (!tau_allowed && special_.tau >= 0) list->push_back(special_.tau);
    }
    return *list;
  }

  double draw(const Row& row, int position, Stream stream) const {
    return uniform(request_.seed, row.key, static_cast<uint32_t>(position), stream);
  }

  // One student step for every row of the group.
  void draft(const std::vector<int>& group) {
    queries_.clear();
    for (const int r : group) {
      const Row& row = rows_[r];
      const bool tau = method_.call.on_tau && row.ledger.allows(row.calls, row.outputs());
      PickRequest request;
      request.sampling = request_.student_sampling;
      if (request.sampling.temperature > 0) request.uniform = draw(row, row.outputs(), Stream::kStudent);
      request.banned = banned(row, tau);
      request.want_log_prob = request_.want_log_probs;
      request.want_confidence = method_.call.min_confidence > 0;
      if (draft_logits_.data) request.keep_logits = draft_slot(r, row.drafts());
      queries_.push_back({r, row.outputs(), request});
    }
    answer(*student_, student_model_);
    for (size_t i = 0; i < group.size(); ++i) {
      Row& row = rows_[group[i]];
      const PickResult& pick = results_[i];
      const bool asks = (method_.call.on_tau && pick.id == special_.tau) ||
                        (method_.call.min_confidence > 0 && method_.call.unsure(pick.confidence));
      if (asks) {
        row.waiting = true;
        row.asked_log_prob = pick.log_prob;
        continue;
      }
      append(row, pick.id, Owner::kStudent);
      if (request_.want_log_probs) row.student_log_probs.back() = pick.log_prob;
      ++row.drafted;
      settle(row);
    }
  }

  // The teacher reads everything it has not seen of the waiting rows in one pass, and answers.
  void call(const std::vector<int>& group) {
    teacher_->open(group, rows_, request_.poll);
    queries_.clear();
    for (const int r : group) ask_teacher(r);
    answer(*teacher_, *teacher_model_);
    for (size_t q = 0; q < queries_.size();) {
      size_t last = q;
      while (last < queries_.size() && queries_[last].row == queries_[q].row) ++last;
      apply(queries_[q].row, q, last);
      q = last;
    }
  }

  bool teacher_writes_next(const Row& row) const {
    return method_.accept.teacher_continues && !is_drafted_end(row) && row.outputs() < request_.max_new_tokens;
  }

  bool is_drafted_end(const Row& row) const { return row.drafts() > 0 && is_end(row.tokens.back()); }

  void ask_teacher(int r) {
    const Row& row = rows_[r];
    const auto& accept = method_.accept;
    const int size = static_cast<int>(row.tokens.size());
    int first_checked = accept.check == Check::kNone ? size : row.draft_begin;
    // A check must not roll back so far that the ledger's fraction would break.
    if (method_.call.on_tau && first_checked < size)
      first_checked = std::max(first_checked, 1 + row.ledger.first_replaceable(row.calls, row.outputs()));
    for (int i = row.draft_begin; i < size; ++i) {
      const bool checked = i >= first_checked;
      if (!checked && !request_.want_log_probs) continue;
      PickRequest request = teacher_pick(row, i - 1);
      request.draft = row.tokens[i];
      request.check = checked ? accept.check : Check::kScore;
      request.threshold = accept.threshold;
      if (request.check == Check::kRejection) {
        request.accept_uniform = draw(row, i - 1, Stream::kAccept);
        request.draft_logits = draft_slot(r, i - row.draft_begin);
        request.draft_vocabulary = student_model_.config().vocabulary;
        request.draft_sampling = request_.student_sampling;
        request.draft_banned = banned_at(i - 1, false);
      }
      queries_.push_back({r, i - 1, request});
    }
    if (teacher_writes_next(row)) queries_.push_back({r, size - 1, teacher_pick(row, size - 1)});
  }

  PickRequest teacher_pick(const Row& row, int position) {
    PickRequest request;
    request.sampling = request_.teacher_sampling;
    if (request.sampling.temperature > 0) request.uniform = draw(row, position, Stream::kTeacher);
    request.banned = banned_at(position, false);
    request.want_log_prob = request_.want_log_probs;
    return request;
  }

  // Applies the teacher's answers [first, last) to row r: keeps, replaces, continues.
  void apply(int r, size_t first, size_t last) {
    Row& row = rows_[r];
    ++row.calls;
    row.waiting = false;
    bool replaced = false;
    for (size_t q = first; q < last && !replaced; ++q) {
      const PickRequest& request = queries_[q].request;
      const PickResult& pick = results_[q];
      const int i = queries_[q].after + 1;
      if (request.check == Check::kNone) {
        append(row, pick.id, Owner::kTeacher);
        if (request_.want_log_probs && method_.call.on_tau) row.student_log_probs[i] = row.asked_log_prob;
      } else if (!pick.passed) {
        const int size = static_cast<int>(row.tokens.size());
        row.rolled_back += size - i;
        const float drafted_log_prob = request_.want_log_probs ? row.student_log_probs[i] : 0.0f;
        truncate(r, i);
        append(row, pick.id, Owner::kCorrected);
        if (request_.want_log_probs) row.student_log_probs[i] = drafted_log_prob;
        replaced = true;
      } else if (request.check != Check::kScore) {
        row.owners[i] = Owner::kAccepted;
        ++row.accepted;
      }
      if (request_.want_log_probs) row.teacher_log_probs[i] = pick.log_prob;
    }
    row.draft_begin = static_cast<int>(row.tokens.size());
    settle(row);
  }

  void answer(Lane& lane, const T5& model) {
    results_.assign(queries_.size(), {});
    lane.catch_up(rows_, queries_, results_, request_.poll);
    for (size_t q = 0; q < queries_.size(); ++q) {
      if (results_[q].finite) continue;
      throw NonFiniteError(concat("the ", model.config().name, "'s logits are not finite at row ", queries_[q].row,
                                  ", step ", queries_[q].after,
                                  "; check its weights for NaN or infinity, or its inputs for overflow"));
    }
  }

  float* draft_slot(int r, int draft) const {
    const size_t slot = static_cast<size_t>(r) * method_.call.draft_length + draft;
    return draft_logits_.data + slot * student_model_.config().vocabulary;
  }

  bool out_of_time() {
    if (request_.max_seconds <= 0 || seconds_since(start_) < request_.max_seconds) return false;
    for (size_t r = 0; r < rows_.size(); ++r) {
      Row& row = rows_[r];
      if (!row.running()) continue;
      // A method that checks everything does not let unchecked drafts out.
      if (method_.accept.checks_all && row.drafts() > 0) {
        row.rolled_back += row.drafts();
        truncate(static_cast<int>(r), row.draft_begin);
      }
      row.finish = Finish::kTime;
      stream(row);
    }
    return true;
  }

  // Hands out the tokens that nothing can take back any more.
  void stream(Row& row) {
    if (!request_.stream) return;
    const bool final = method_.accept.check == Check::kNone || !row.running();
    const int settled = final ? static_cast<int>(row.tokens.size()) : row.draft_begin;
    for (; row.streamed < settled; ++row.streamed)
      request_.stream(static_cast<int>(&row - rows_.data()), row.streamed - 1, row.tokens[row.streamed],
                      row.owners[row.streamed]);
  }

  GenerateResult result() {
    GenerateResult out;
    out.rows = std::move(rows_);
    out.student_passes = student_->passes;
    out.student_seconds = student_->decode_seconds;
    out.encode_seconds = student_->encode_seconds;
    if (teacher_) {
      out.teacher_passes = teacher_->passes;
      out.teacher_seconds = teacher_->decode_seconds;
      out.encode_seconds += teacher_->encode_seconds;
    }
    out.other_seconds = seconds_since(start_) - out.encode_seconds - out.student_seconds - out.teacher_seconds;
    return out;
  }

  Backend& backend_;
  const T5& student_model_;
  const T5* teacher_model_;
  const Method method_;
  const SpecialTokens& special_;
  const GenerateRequest& request_;
  const Clock::time_point start_;

  std::vector<Row> rows_;
  std::optional<T5State> student_state_, teacher_state_;
  Workspace student_work_, teacher_work_;
  std::optional<Lane> student_, teacher_;
  Buffer draft_logits_;  // [R, K, V_student], rejection sampling only
  std::vector<Query> queries_;
  std::vector<PickResult> results_;
  std::optional<std::vector<int32_t>> ban_lists_[2][2];  // [end banned][tau allowed]
};

}  // namespace

Decoder::Decoder(std::string device, std::shared_ptr<const T5> student, std::shared_ptr<const T5> teacher,
                 Method method, SpecialTokens special)
    : device_(std::move(device)),
      student_(std::move(student)),
      teacher_(std::move(teacher)),
      method_(method),
      special_(std::move(special)) {
  require(!method_.two_models || teacher_ != nullptr, "this method needs a teacher");
}

GenerateResult Decoder::generate(const GenerateRequest& request) const {
  const auto backend = make_backend(device_, request.threads);
  Method method = method_;
  // A sampling teacher turns the exact match of speculative decoding into rejection sampling.
  if (method.accept.check == Check::kLenience && method.accept.checks_all && request.teacher_sampling.temperature > 0)
    method.accept.check = Check::kRejection;
  return Loop(*backend, *student_, teacher_.get(), method, special_, request).run();
}

}  // namespace kdtw
