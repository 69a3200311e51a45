// A lane is a model, its caches and how much of each row's committed tokens they hold. Committed tokens
// are the only truth; a cache is always a prefix of them. Two verbs: catch_up reads what has not been
// read, rewind forgets without moving data. Rows lie in slots, which one row after the other may use.
#pragma once

#include <algorithm>
#include <span>
#include <vector>

#include "decode/row.h"
#include "model/t5.h"

namespace kdtw {

// A question about the token after committed token `after` of the row in `slot`.
struct Query {
  int slot;
  int after;
  PickRequest request;
};

class Lane {
 public:
  // source: which of a row's sources the model reads. reads_marks: it sees which tokens which teacher wrote.
  Lane(Backend& backend, const T5& model, int source, bool reads_marks, int slots, int source_capacity,
       int target_capacity)
      : backend_(backend),
        model_(model),
        source_(source),
        reads_marks_(reads_marks),
        state_(model, slots, source_capacity, target_capacity),
        read_(slots, 0) {}

  // Encodes the sources of those slots' rows that are not encoded yet, together. rows[slot] is a slot's row.
  void open(std::span<const int> slots, std::span<const Row> rows, const Poll& poll);
  // The same beside other lanes' passes, up to this lane's next one.
  void open_aside(std::span<const int> slots, std::span<const Row> rows, const Poll& poll);
  bool opened(int slot) const { return state_.source_length[slot] > 0; }

  // Reads each queried row up to its last queried token, in one ragged pass, and answers the queries
  // (a row's together, ordered by `after`). A query about a token that was read before is an error of the loop.
  void catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                const Poll& poll);

  // From now on passes that a Replay takes go through one. Not for a lane that moves afterwards.
  void make_replay();
  // From now on draft() can be called, with up to `slots` rows and `steps` steps; false: the host takes every step
  // here. Not for a lane that moves afterwards.
  bool make_drafter(const DraftRules& rules, int slots, int steps);
  // Lets rows draft by themselves, see Drafter; drafts[i].self.row is a slot, its newest token and places are filled in
  // here. Reads what is unread of them first.
  void draft(std::span<const Row> rows, std::span<DraftRow> drafts, const DraftPause& pause,
             std::vector<std::vector<PickResult>>& picks, const Poll& poll);

  // Committed tokens of the slot's row that the caches hold.
  int read(int slot) const { return read_[slot]; }

  void rewind(int slot, int length) { read_[slot] = std::min(read_[slot], length); }

  // The slot's row has left. Its keys and values stay where they are: no length of the next row reaches one that
  // this row has not written itself.
  void release(int slot) { read_[slot] = state_.source_length[slot] = 0; }

  const T5& model() const { return model_; }

  int passes = 0;
  double encode_seconds = 0.0, decode_seconds = 0.0;

 private:
  struct Unopened {
    std::vector<int> slots;
    std::vector<std::vector<int32_t>> sources;
  };
  Unopened unopened(std::span<const int> slots, std::span<const Row> rows) const;
  DecoderPass pass_in(Workspace& work);
  void flush(std::span<PickResult> results, size_t& answered, const Poll& poll);

  Backend& backend_;
  const T5& model_;
  const int source_;
  const bool reads_marks_;
  T5State state_;
  Workspace work_;
  std::vector<int> read_;  // see read()
  // The pass being put together; kept for their memory.
  std::vector<InputToken> tokens_;
  std::vector<int32_t> wanted_;
  std::vector<PickRequest> requests_;
  TokenLists lists_;
  Workspace aside_work_;
  bool put_aside_ = false;              // and not joined yet
  Workspace draft_work_, replay_work_;  // of graphs: they must not move
  std::unique_ptr<Drafter> drafter_;
  std::unique_ptr<Replay> replay_;
};

}  // namespace kdtw
