#include "decode/session.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/error.h"

namespace kdtw {

Session::Turn::Turn(Session& session) : session_(session) {
  if (session.in_use_.exchange(true))
    throw std::runtime_error(
        "this session is at work in another thread, or in a call further up; a session serves one call at a time");
  if (!session.broken_) return;
  session.in_use_ = false;
  throw std::runtime_error("this session has ended with an error; open a new one");
}

namespace {

std::shared_ptr<Lanes> make_lanes(const Decoder& decoder, const SessionOptions& options, int slots,
                                  int source_capacity) {
  require(slots > 0, "a session needs at least one slot, got ", slots);
  // Memory for the distributions that drafts were drawn from is made for so many.
  const auto& call = decoder.method.call;
  const auto& accept = decoder.method.accept;
  require(call.draft_length > 0 || !(accept.checks_all || needs_draft_logits(accept.check)),
          "a method that checks all drafts, or by what they were drawn from, needs a draft_length above 0, got ",
          call.draft_length);
  require(!decoder.method.two_models || accept.teacher_continues || accept.check != Check::kNone,
          "a method whose teacher neither writes nor checks asks it for nothing");
  const int capacity = options.row.max_new_tokens + 1;
  const bool want_log_probs = options.want_log_probs || options.top_count > 0;
  return Lanes::of(decoder, {slots, source_capacity, capacity, want_log_probs}, options.threads);
}

}  // namespace

Session::Session(std::shared_ptr<const Decoder> decoder, SessionOptions options, int slots, int source_capacity)
    : decoder_(std::move(decoder)),
      options_(std::move(options)),
      source_capacity_(source_capacity),
      method_(decoder_->method),
      lanes_(make_lanes(*decoder_, options_, slots, source_capacity)),
      backend_(lanes_->backend),
      student_(&*lanes_->student),
      teachers_(lanes_->teachers),
      rows_(slots) {
  for (int slot = slots - 1; slot >= 0; --slot) free_.push_back(slot);
  const auto& special = decoder_->special;
  for (const int32_t id : special.end) stops_.push_back({id, 0});
  for (size_t i = 0; i < special.tau.size(); ++i) stops_.push_back({special.tau[i], 1 + static_cast<int32_t>(i)});
  banned_[0] = banned_[1] = special.tau;
  banned_[0].insert(banned_[0].begin(), special.end.begin(), special.end.end());

  const int capacity = lanes_->size.target_capacity;
  rules_.stops = stops_.data(), rules_.stop_count = static_cast<int32_t>(stops_.size());
  rules_.min_confidence = method_.call.min_confidence;
  rules_.max_entropy = method_.call.max_entropy;
  rules_.max_uniform = method_.call.max_uniform;
  rules_.teachers = asked_teachers();
  rules_.draft_length = std::min(method_.call.draft_length, capacity);  // memory is made for so many
  rules_.checks_all = method_.accept.checks_all;
  rules_.vocabulary = decoder_->student_vocabulary();
  rules_.want_log_prob = options_.want_log_probs || options_.top_count > 0;
  rules_.top_count = options_.top_count;
  require(options_.top_count == 0 || decoder_->device == "cpu", "the likeliest tokens are the CPU's to rank, not ",
          decoder_->device, "'s");
  seconds_ = seconds_since(opened_);
}

Session::~Session() {
  try {
    if (!broken_) Lanes::leave(*decoder_, lanes_);
  } catch (const std::exception&) {  // of the device; who uses it next hears of it
  }
}

std::vector<Row> Session::run(Until until, const Poll& poll, const TokenStream& stream, Bell* bell) {
  Turn turn(*this);
  broken_ = true;  // until this call has come through
  bool turned = false;
  if (until == Until::kAllFinished) bell = nullptr;
  {
    Stopwatch watch(seconds_);
    const Listening listening(*backend_.operations, poll);
    student_->begin(bell);
    for (Lane& teacher : teachers_) teacher.begin(bell);
    admit(poll);
    for (;;) {
      poll();
      stop_late_rows();
      stop_rows();
      if (stream) {
        settled_.clear();
        for (const int slot : running_) hand_tokens(rows_[slot]);
        if (!settled_.empty()) check_weights(), stream(settled_);
      }
      retire();
      const bool enough = until == Until::kAllFinished ? fault_ : !finished_.empty() || (bell && bell->rung());
      if (enough || running_.empty() || std::exchange(turned, until == Until::kTurn)) break;
      select(drafting_, [](const Row& row) { return !row.waiting(); });
      bool called = false;
      for (int k = 1; k <= asked_teachers(); ++k) {
        select(waiting_, [k](const Row& row) { return row.waiting() == k; });
        const int waiting = static_cast<int>(waiting_.size()), drafting = static_cast<int>(drafting_.size());
        if (call_now(waiting, drafting, options_.teacher_batch)) {
          call(k, waiting_, poll);
          called = true;
        } else {
          teachers_[k - 1].open_soon(waiting_, rows_, poll);
        }
      }
      if (called) continue;
      // A streamer is to be handed every token, the clock is looked at between tokens, and nothing is written that a
      // stop would cut.
      const auto hurried = [this](int slot) {
        return rows_[slot].options.max_seconds > 0 || rows_[slot].options.stops.any();
      };
      draft(drafting_, until != Until::kAllFinished, stream || std::ranges::any_of(running_, hurried), poll);
    }
  }
  check_weights();
  broken_ = fault_ = false;
  std::sort(finished_.begin(), finished_.end(), [](const Row& a, const Row& b) { return a.index < b.index; });
  return std::exchange(finished_, {});
}

void Session::check_weights() const {
  decoder_->student->check();
  for (const auto& teacher : decoder_->teachers) teacher->check();
}

Totals Session::totals() const {
  Totals totals;
  totals.student_passes = student_->passes;
  totals.student_seconds = student_->decode_seconds;
  totals.encode_seconds = student_->encode_seconds;
  for (const Lane& teacher : teachers_) {
    totals.teacher_passes += teacher.passes;
    totals.teacher_seconds += teacher.decode_seconds;
    totals.encode_seconds += teacher.encode_seconds;
  }
  totals.other_seconds = seconds_ - totals.encode_seconds - totals.student_seconds - totals.teacher_seconds;
  if (method_.teacher_alone) {
    std::swap(totals.student_passes, totals.teacher_passes);
    std::swap(totals.student_seconds, totals.teacher_seconds);
  }
  return totals;
}

template <typename Predicate>
void Session::select(std::vector<int>& group, Predicate&& predicate) const {
  group.clear();
  for (const int slot : running_)
    if (predicate(rows_[slot])) group.push_back(slot);
}

void Session::append(Row& row, int32_t token, Owner owner, int teacher) {
  row.tokens.push_back(token);
  row.owners.push_back(owner);
  row.teacher_index.push_back(static_cast<uint8_t>(teacher));
  if (options_.want_log_probs) {
    row.student_log_probs.resize(row.tokens.size(), std::numeric_limits<float>::quiet_NaN());
    row.teacher_log_probs.resize(row.tokens.size(), std::numeric_limits<float>::quiet_NaN());
  }
  row.top.resize(row.tokens.size() * options_.top_count, kNoTop);
}

// What was likeliest at that pick stands beside the token in that place.
void Session::put_top(Row& row, int place, const std::vector<TopToken>& top, size_t pick) const {
  const size_t count = options_.top_count;
  std::copy_n(top.begin() + pick * count, count, row.top.begin() + place * count);
}

void Session::truncate(int slot, int length) {
  Row& row = rows_[slot];
  row.tokens.resize(length);
  row.owners.resize(length);
  row.teacher_index.resize(length);
  if (options_.want_log_probs) {
    row.student_log_probs.resize(length);
    row.teacher_log_probs.resize(length);
  }
  row.top.resize(static_cast<size_t>(length) * options_.top_count);
  student_->rewind(slot, length);
  for (Lane& teacher : teachers_) teacher.rewind(slot, length);
}

// What a teacher's last word leaves: the row drafts from here, or waits, or has finished.
void Session::begin_draft(int slot) {
  Row& row = rows_[slot];
  const int end = row.options.max_new_tokens, asked = method_.call.on_tau ? asked_teachers() : 0;
  row.first_allowed.assign(decoder_->special.end.size(), row.options.min_new_tokens);
  for (int k = 1; k <= static_cast<int>(decoder_->special.tau.size()); ++k)
    row.first_allowed.push_back(k <= asked ? row.first_call(k, end) : end);
  DraftRow& draft = row.draft = {};
  draft.seed = row.options.seed;
  draft.key = row.key;
  draft.sampling = row.options.student_sampling;
  draft.most_outputs = end;
  draft.most_drafted = end - (method_.accept.checks_all && method_.accept.teacher_continues ? 1 : 0);
  draft.first_allowed = row.first_allowed.data();
  if (needs_draft_logits(row.check)) draft.keep_logits = draft_slot(slot, 0);
  draft.row = slot;
  draft.id = row.tokens.back();
  draft.marked = method_.marks_teacher ? row.teacher_index.back() : 0;
  draft.position = row.outputs();
  if (row.options.rules) {
    row.ruled.rules = row.options.rules.get();
    row.read_by(decoder_->student->config().has_encoder(), 0, draft.position, row.ruled.read);
    draft.ruled = &row.ruled;
  }
  if (options_.top_count > 0) draft.top = &row.drafted_top;
  if (method_.call.by_itself()) draft.first_call = row.first_call(1, end);
  for (int k = 1; k <= asked_teachers(); ++k) draft.unseen_by |= uint32_t{!teachers_[k - 1].opened(slot)} << (k - 1);
  draft.stand = stand_of(rules_, draft);
  settle(row);
}

void Session::settle(Row& row) const {
  if (row.draft.stand != kFinished || !row.running()) return;
  const bool ended = row.outputs() > 0 && decoder_->special.is_end(row.tokens.back());
  row.finish = ended ? Finish::kEnd : Finish::kLength;
}

// What the teacher must not pick as output `position`.
void Session::ban(PickRequest& request, const Row& row, int position) const {
  const auto& ids = banned_[position < row.options.min_new_tokens ? 0 : 1];
  request.banned = ids.data(), request.banned_count = static_cast<int32_t>(ids.size());
}

double Session::draw(const Row& row, int position, RandomStream stream) const {
  return uniform(row.options.seed, row.key, static_cast<uint32_t>(position), stream);
}

// The group drafts until a call is due (call_now), or a row has finished and until_finish.
void Session::draft(const std::vector<int>& group, bool until_finish, bool step_by_step, const Poll& poll) {
  DraftPause pause;
  pause.batch = options_.teacher_batch, pause.at_finish = until_finish;
  pause.most_steps = step_by_step ? 1 : kLongestDraft;
  for (const int slot : running_)
    if (const int k = rows_[slot].waiting()) ++pause.waiting[k - 1];
  drafts_.clear();
  for (const int slot : group) {
    Row& row = rows_[slot];
    row.draft.picks = 0;
    row.drafted_top.tokens.clear();
    drafts_.push_back(row.draft);
    if (options_.want_reads)
      reads(row, *student_).push_back(static_cast<int>(row.tokens.size()) - student_->read(slot));
  }
  student_->draft(rows_, drafts_, rules_, pause, picks_, poll);
  for (size_t i = 0; i < group.size(); ++i) {
    Row& row = rows_[group[i]];
    row.draft = drafts_[i];
    if (options_.want_reads) {
      auto& list = reads(row, *student_);
      list.resize(list.size() + picks_[i].size() - 1, 1);
    }
    for (size_t p = 0; p < picks_[i].size(); ++p) {
      const PickResult& pick = picks_[i][p];
      if (!pick.finite && !row.waiting()) {
        fail(row, *student_, pick, row.outputs());
      } else if (row.outputs() < row.draft.position) {
        commit(row, pick);
        if (options_.top_count > 0) put_top(row, row.outputs(), row.drafted_top.tokens, p);
      } else {
        row.asked_log_prob = pick.log_prob;
      }
    }
    settle(row);
  }
}

void Session::commit(Row& row, const PickResult& pick) {
  if (method_.teacher_alone) {
    append(row, pick.id, Owner::kTeacher, 1);
    ++row.calls, ++row.own_calls[0];
  } else {
    append(row, pick.id, Owner::kStudent);
    ++row.drafted;
  }
  if (options_.want_log_probs)
    (method_.teacher_alone ? row.teacher_log_probs : row.student_log_probs).back() = pick.log_prob;
}

// Teacher k reads everything it has not seen of the rows that wait for it in one pass, and answers.
void Session::call(int teacher, const std::vector<int>& group, const Poll& poll) {
  Lane& lane = teachers_[teacher - 1];
  lane.open(group, rows_, poll);
  queries_.clear(), edits_.clear();
  for (const int slot : group) ask_teacher(slot);
  answer(lane, poll);
  for (size_t q = 0; q < queries_.size();) {
    const int slot = queries_[q].slot;
    size_t last = q;
    while (last < queries_.size() && queries_[last].slot == slot) ++last;
    apply(slot, q, last);
    q = last;
  }
}

bool Session::teacher_writes_next(const Row& row) const {
  const bool drafted_end = row.drafts() > 0 && decoder_->special.is_end(row.tokens.back());
  return method_.accept.teacher_continues && !drafted_end && row.outputs() < row.options.max_new_tokens;
}

void Session::ask_teacher(int slot) {
  const Row& row = rows_[slot];
  const auto& accept = method_.accept;
  const int size = static_cast<int>(row.tokens.size());
  int first_checked = row.check == Check::kNone ? size : row.draft_begin();
  // A check must not roll back so far that the ledger's fraction would break.
  if (method_.call.on_tau && first_checked < size)
    first_checked = std::max(first_checked, 1 + row.first_replaceable(row.waiting()));
  for (int i = row.draft_begin(); i < size; ++i) {
    const bool checked = i >= first_checked;
    if (!checked && !options_.want_log_probs) continue;
    PickRequest request = teacher_pick(row, i - 1);
    request.draft = row.tokens[i];
    request.check = checked ? row.check : Check::kScore;
    request.threshold = asked_threshold(row.check, accept.threshold);
    if (needs_draft_logits(request.check)) {
      request.accept_uniform = draw(row, i - 1, RandomStream::kAccept);
      request.draft_logits = draft_slot(slot, i - row.draft_begin());
      request.draft_vocabulary = rules_.vocabulary;
      request.draft_sampling = row.options.student_sampling;
      PickRequest own;
      ban(own, row, i - 1);
      request.draft_banned = own.banned, request.draft_banned_count = own.banned_count;
      if (row.options.rules) edits_of(row, *decoder_->student, 0, i - 1).put_draft(request);
    }
    queries_.push_back({slot, i - 1, request});
  }
  if (teacher_writes_next(row)) queries_.push_back({slot, size - 1, teacher_pick(row, size - 1)});
}

PickRequest Session::teacher_pick(const Row& row, int position) {
  PickRequest request;
  request.sampling = row.options.teacher_sampling;
  if (request.sampling.temperature > 0) request.uniform = draw(row, position, RandomStream::kTeacher);
  ban(request, row, position);
  if (row.options.rules) edits_of(row, *decoder_->teachers[row.waiting() - 1], row.waiting(), position).put(request);
  request.want_log_prob = rules_.want_log_prob;
  return request;
}

// Applies the teacher's answers [first, last) to the slot's row: keeps, replaces, continues. A row whose logits are not
// finite, or to which no token is left, where an answer counts is at fault and ends; the others go on.
void Session::apply(int slot, size_t first, size_t last) {
  Row& row = rows_[slot];
  const int teacher = row.waiting();
  ++row.calls;
  ++row.own_calls[teacher - 1];
  bool replaced = false;
  for (size_t q = first; q < last && !replaced; ++q) {
    const PickRequest& request = queries_[q].request;
    const PickResult& pick = results_[q];
    const int i = queries_[q].after + 1;
    if (!pick.finite) return fail(row, teachers_[teacher - 1], pick, queries_[q].after);
    if (request.check == Check::kNone) {
      append(row, pick.id, Owner::kTeacher, teacher);
      if (options_.want_log_probs && method_.call.on_tau) row.student_log_probs[i] = row.asked_log_prob;
    } else if (!pick.passed) {
      const int size = static_cast<int>(row.tokens.size());
      row.rolled_back += size - i;
      const float drafted_log_prob = options_.want_log_probs ? row.student_log_probs[i] : 0.0f;
      truncate(slot, i);
      append(row, pick.id, Owner::kCorrected, teacher);
      if (options_.want_log_probs) row.student_log_probs[i] = drafted_log_prob;
      replaced = true;
    } else if (request.check != Check::kScore) {
      row.owners[i] = Owner::kAccepted;
      ++row.accepted;
    }
    if (options_.want_log_probs) row.teacher_log_probs[i] = pick.log_prob;
    if (request.top_count > 0) put_top(row, i, query_top_, q);
  }
  begin_draft(slot);
}

// Answers the queries.
void Session::answer(Lane& lane, const Poll& poll) {
  if (options_.want_reads) record_reads(lane);
  results_.assign(queries_.size(), {});
  query_top_.assign(queries_.size() * options_.top_count, kNoTop);
  for (size_t q = 0; q < queries_.size(); ++q) {
    PickRequest& request = queries_[q].request;
    if (options_.top_count == 0 || request.check == Check::kScore) continue;  // who wrote that token has told
    request.top = &query_top_[q * options_.top_count], request.top_count = options_.top_count;
  }
  lane.catch_up(rows_, queries_, results_, poll);
}

void Session::fail(Row& row, const Lane& lane, const PickResult& pick, int step) const {
  row.finish = Finish::kFault;
  if (pick.id == kNoneLeft) {
    row.fault = concat("row ", row.index, "'s options leave no token for output ", step, "; ban fewer");
    return;
  }
  row.fault = concat("the ", lane.model().config().name, "'s logits are not finite at row ", row.index, ", step ", step,
                     "; check its weights for NaN or infinity, or its inputs for overflow");
}

std::vector<int32_t>& Session::reads(Row& row, const Lane& lane) const {
  return &lane == &*student_ && !method_.teacher_alone ? row.student_reads : row.teacher_reads;
}

// What the pass that answers the queries will read of each row: all up to the row's last query.
void Session::record_reads(const Lane& lane) {
  for (size_t q = 0; q < queries_.size(); ++q) {
    const int slot = queries_[q].slot;
    if (q + 1 < queries_.size() && queries_[q + 1].slot == slot) continue;
    Row& row = rows_[slot];
    reads(row, lane).push_back(queries_[q].after + 1 - lane.read(slot));
  }
}

float* Session::draft_slot(int slot, int draft) const {
  return lanes_->draft_logits.data + (static_cast<size_t>(slot) * rules_.draft_length + draft) * rules_.vocabulary;
}

}  // namespace kdtw
