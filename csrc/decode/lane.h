// A lane is a model, its caches and how much of each row's committed tokens they hold. Committed tokens
// are the only truth; a cache is always a prefix of them. Two verbs: catch_up reads what has not been
// read, rewind forgets without moving data.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "decode/row.h"
#include "model/t5.h"

namespace kdtw {

// A question about the token after committed token `after` of `row`.
struct Query {
  int row;
  int after;
  PickRequest request;
};

class Lane {
 public:
  Lane(Backend& backend, const T5& model, T5State& state, Workspace& work, bool reads_student_source, bool reads_marks)
      : backend_(backend),
        model_(model),
        state_(state),
        work_(work),
        reads_student_source_(reads_student_source),
        reads_marks_(reads_marks),
        read_(state.rows, 0) {}

  // Encodes the sources of those rows that have none yet.
  void open(std::span<const int> rows, std::span<const Row> all, const Poll& poll);

  // Reads each queried row up to its last queried token, in one ragged pass, and answers the queries
  // (ordered by row, then by `after`). A query about a token that was read before is an error of the loop.
  void catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                const Poll& poll);

  void rewind(int row, int length) { read_[row] = std::min(read_[row], length); }

  int passes = 0;
  double encode_seconds = 0.0, decode_seconds = 0.0;

 private:
  Backend& backend_;
  const T5& model_;
  T5State& state_;
  Workspace& work_;
  const bool reads_student_source_, reads_marks_;
  std::vector<int> read_;  // committed tokens per row that the caches hold
};

}  // namespace kdtw
