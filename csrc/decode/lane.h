// A lane is a model, its caches and how much of each row's committed tokens they hold. Committed tokens
// are the only truth; a cache is always a prefix of them. Two verbs: catch_up reads what has not been
// read, rewind forgets without moving data. Rows lie in slots, which one row after the other may use.
#pragma once

#include <algorithm>
#include <memory>
#include <span>
#include <vector>

#include "backend/runner.h"
#include "decode/row.h"
#include "model/transformer.h"

namespace kdtw {

// A question about the token after committed token `after` of the row in `slot`.
struct Query {
  int slot;
  int after;
  PickRequest request;
};

class Lane {
 public:
  // vocabulary: it picks ids below. source: which of a row's sources the model reads. reads_marks: it sees which tokens
  // which teacher wrote.
  Lane(Backend& backend, const Transformer& model, int vocabulary, int source, bool reads_marks, int slots,
       int source_capacity, int target_capacity);
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  // To be called at the beginning of a call; see Runner::begin.
  void begin(const Bell* bell) { runner_->begin(bell); }
  // Encodes the sources of those slots' rows that are not encoded yet, together. rows[slot] is a slot's row.
  void open(std::span<const int> slots, std::span<const Row> rows, const Poll& poll);
  // They will be opened: what can be done beside other lanes' passes may begin.
  void open_soon(std::span<const int> slots, std::span<const Row> rows, const Poll& poll);
  bool opened(int slot) const { return state_.source_length[slot] > 0; }

  // Reads each queried row up to its last queried token, in one ragged pass, and answers the queries
  // (a row's together, ordered by `after`). A query about a token that was read before is an error of the loop.
  void catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                const Poll& poll);

  // Reads what is unread of the slots' rows and lets them draft (Runner::draft); drafts[i] is that of the row in slot
  // drafts[i].row.
  void draft(std::span<const Row> rows, std::span<DraftRow> drafts, const DraftRules& rules, const DraftPause& pause,
             Picks& picks, const Poll& poll);

  // Committed tokens of the slot's row that the caches hold.
  int read(int slot) const { return read_[slot]; }

  void rewind(int slot, int length) { read_[slot] = std::min(read_[slot], length); }

  // The slot's row has left. Its keys and values stay where they are: no length of the next row reaches one that
  // this row has not written itself.
  void release(int slot) { read_[slot] = state_.source_length[slot] = 0; }

  // The session has ended, and with it the device's work. Whether another session may take the lane over; until then
  // it keeps nobody from changing the model's weights.
  bool rest();
  // Another session takes it over; false where it cannot: the model's weights are others now.
  bool resume();

  const Transformer& model() const { return model_; }

  int passes = 0;
  double encode_seconds = 0.0, decode_seconds = 0.0;

 private:
  struct Unopened {
    std::vector<int> slots;
    std::vector<std::vector<int32_t>> sources;
  };
  Unopened unopened(std::span<const int> slots, std::span<const Row> rows) const;
  void put(const Row& row, int slot, int position);

  Operations& operations_;
  const Transformer& model_;
  const int source_;
  const bool reads_marks_;
  ModelState state_;
  const std::shared_ptr<const void> weights_;  // Transformer::identity() of those that graphs know
  std::vector<int> read_;                      // see read()
  // The pass being put together; kept for their memory.
  std::vector<InputToken> tokens_;
  std::vector<int32_t> wanted_;
  std::vector<PickRequest> requests_;
  TokenLists lists_;
  Workspace encoding_, encoding_soon_;
  const std::unique_ptr<Weight> head_;    // empty: the model's, whole
  const std::unique_ptr<Runner> runner_;  // uses what stands before it
};

}  // namespace kdtw
