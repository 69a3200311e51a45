// One sequence being decoded.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/clock.h"
#include "decode/rules.h"

namespace kdtw {

enum class Finish : uint8_t { kRunning = 0, kEnd = 1, kLength = 2, kTime = 3, kFault = 4 };

struct Row {
  // Given
  int index = 0;     // how many rows its session had been given before
  uint64_t key = 0;  // names the row to the random numbers
  std::vector<int32_t> student_source, teacher_source;
  Ledger ledger;
  Clock::time_point added;

  // Committed tokens, the start token first; owners beside them.
  std::vector<int32_t> tokens;
  std::vector<Owner> owners;
  std::vector<float> student_log_probs, teacher_log_probs;  // beside the tokens, when asked for
  std::vector<int32_t> student_reads, teacher_reads;        // tokens that each pass read of this row, when asked for

  int draft_begin = 1;   // index of the first token since the teacher's last word
  bool waiting = false;  // for the teacher
  Finish finish = Finish::kRunning;
  std::string fault;  // kFault: what is wrong, in one sentence
  int calls = 0, drafted = 0, accepted = 0, rolled_back = 0;
  float asked_log_prob = 0.0f;  // log-probability of the action that asked for the teacher
  int streamed = 1;             // tokens already handed to the streamer

  int outputs() const { return static_cast<int>(tokens.size()) - 1; }
  int drafts() const { return static_cast<int>(tokens.size()) - draft_begin; }
  bool running() const { return finish == Finish::kRunning; }
};

}  // namespace kdtw
