// The decode loop that every method shares, over rows that come and go: a session has slots, a row is added to a
// free one and leaves it when it has finished. What comes out for a row does not depend on its slot, on what was
// in the slot before, or on the rows beside it.
#pragma once

#include <atomic>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "core/bell.h"
#include "core/clock.h"
#include "decode/decoder.h"
#include "decode/lanes.h"
#include "decode/row.h"

namespace kdtw {

// What the rows of a session share.
struct SessionOptions {
  RowOptions row;         // of rows that have none of their own; none has more max_new_tokens
  int teacher_batch = 0;  // see call_now
  bool want_log_probs = false;
  bool want_reads = false;
  int top_count = 0;  // likeliest tokens beside each that was picked, by whoever decided: its writer or its checker
  int threads = 0;
};

// Sums over the session so far.
struct Totals {
  int student_passes = 0, teacher_passes = 0;
  double encode_seconds = 0, student_seconds = 0, teacher_seconds = 0, other_seconds = 0;
};

// A token that nothing can take back any more; positions count a row's outputs from 0.
struct SettledToken {
  int row;
  int position;
  int32_t token;
  Owner owner;
};
// Called with all that have settled since it was called last, in order of each row's positions.
using TokenStream = std::function<void(std::span<const SettledToken>)>;

// kTurn: once through the loop, which is one teacher's pass or one draft.
enum class Until { kTurn, kSomeFinished, kAllFinished };

class Session {
 public:
  // source_capacity: tokens of the longest source, of student or teachers.
  Session(std::shared_ptr<const Decoder> decoder, SessionOptions options, int slots, int source_capacity);
  ~Session();

  // Puts a row into a free slot; the next run() encodes it, together with others that were added. Rows are numbered
  // 0, 1, 2, ... as they come. `ledger` bounds all teachers together, own_ledgers[k - 1] teacher k. teacher_sources[k -
  // 1] is teacher k's source; where it is empty or missing: the student's. A missing ledger of its own bounds nothing.
  // options: of the row, instead of SessionOptions::row. Returns the row's number.
  int add(uint64_t key, Ledger ledger, std::vector<int32_t> student_source,
          std::vector<std::vector<int32_t>> teacher_sources, std::vector<Ledger> own_ledgers,
          const RowOptions* options = nullptr);

  // Ends the row of that number, which is handed out to nobody; false where none runs.
  bool drop(int index);

  // Decodes until a row has finished, or all have; a row at fault (Row::fault) ends either. Hands out what has
  // finished, in the order of the rows' numbers; nothing when no row is left, or when the bell ended it, which only
  // kAllFinished does not hear.
  //
  // An exception (of `poll`, which is called often, or of `stream`) ends the session: caches may be out of step.
  std::vector<Row> run(Until until, const Poll& poll, const TokenStream& stream, Bell* bell = nullptr);

  int free_slots() const { return static_cast<int>(free_.size()); }
  const SessionOptions& options() const { return options_; }
  // Whether the model that writes has no encoder: its source is a prompt.
  bool prompted() const { return !decoder_->student->config().has_encoder(); }
  // Teachers that rows are counted by: also one that decodes alone.
  int teachers() const { return method_.teacher_alone ? 1 : asked_teachers(); }
  Totals totals() const;

 private:
  // Marks the session as taken for the length of a call.
  class Turn {
   public:
    explicit Turn(Session& session);
    ~Turn() { session_.in_use_ = false; }

   private:
    Session& session_;
  };

  int asked_teachers() const { return static_cast<int>(teachers_.size()); }
  void check_weights() const;
  void admit(const Poll& poll);
  void append(Row& row, int32_t token, Owner owner, int teacher = 0);
  void truncate(int slot, int length);
  void begin_draft(int slot);
  void settle(Row& row) const;
  void ban(PickRequest& request, const Row& row, int position) const;
  TokenEdits& edits_of(const Row& row, const Transformer& model, int source, int position);
  void leave(int slot);
  double draw(const Row& row, int position, RandomStream stream) const;
  float* draft_slot(int slot, int draft) const;
  template <typename Predicate>
  void select(std::vector<int>& group, Predicate&& predicate) const;
  void draft(const std::vector<int>& group, bool until_finish, bool step_by_step, const Poll& poll);
  void commit(Row& row, const PickResult& pick);
  void put_top(Row& row, int place, const std::vector<TopToken>& top, size_t pick) const;
  void fail(Row& row, const Lane& lane, const PickResult& pick, int step) const;
  void call(int teacher, const std::vector<int>& group, const Poll& poll);
  bool teacher_writes_next(const Row& row) const;
  void ask_teacher(int slot);
  PickRequest teacher_pick(const Row& row, int position);
  void apply(int slot, size_t first, size_t last);
  void answer(Lane& lane, const Poll& poll);
  std::vector<int32_t>& reads(Row& row, const Lane& lane) const;
  void record_reads(const Lane& lane);
  void stop_late_rows();
  void stop_rows();
  void cut(int slot, int length);
  int settled(const Row& row) const;
  void hand_tokens(Row& row);
  void retire();

  const Clock::time_point opened_ = Clock::now();
  const std::shared_ptr<const Decoder> decoder_;
  const SessionOptions options_;
  const int source_capacity_;
  MethodRules method_;
  const std::shared_ptr<Lanes> lanes_;
  Backend& backend_;
  Lane* const student_;
  std::deque<Lane>& teachers_;  // [k - 1]
  std::vector<StopToken> stops_;
  std::vector<int32_t> banned_[2];  // to the teacher: before min_new_tokens, and from there on
  DraftRules rules_;

  int added_rows_ = 0;
  std::vector<Row> rows_;                    // by slot
  std::vector<int> free_, added_, running_;  // slots: each is in one of the three
  std::vector<Row> finished_;                // not handed out yet
  bool fault_ = false;                       // one of these is at fault
  std::vector<int> drafting_, waiting_;      // slots, kept for their memory like what follows
  std::vector<Query> queries_;
  std::deque<TokenEdits> edits_;  // of the queries
  std::vector<int32_t> read_;
  std::vector<PickResult> results_;
  std::vector<TopToken> query_top_;
  std::vector<DraftRow> drafts_;
  Picks picks_;
  std::vector<SettledToken> settled_;
  double seconds_ = 0.0;  // in here
  bool broken_ = false;
  std::atomic<bool> in_use_ = false;
};

}  // namespace kdtw
