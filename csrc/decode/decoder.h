// The decode loop that every method shares, and what goes in and comes out.
#pragma once

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "decode/row.h"
#include "decode/rules.h"
#include "model/t5.h"

namespace kdtw {

struct GenerateRequest {
  std::vector<std::vector<int32_t>> student_sources, teacher_sources;  // teacher's empty: same as the student's
  std::vector<uint64_t> row_keys;
  std::vector<Ledger> ledgers;
  std::vector<int32_t> forced_tokens;
  int max_new_tokens = 64;
  int min_new_tokens = 0;
  Sampling student_sampling, teacher_sampling;
  uint64_t seed = 0;
  double max_seconds = 0.0;  // 0 = no limit
  bool want_log_probs = false;
  int threads = 0;
  // Called with every settled token, in order of each row's positions (0 = first output).
  std::function<void(int row, int position, int32_t token, Owner owner)> stream;
  Poll poll;  // called often; throws to stop
};

struct GenerateResult {
  std::vector<Row> rows;
  int student_passes = 0, teacher_passes = 0;
  double encode_seconds = 0, student_seconds = 0, teacher_seconds = 0, other_seconds = 0;
};

struct SpecialTokens {
  int32_t start = 0;
  std::vector<int32_t> end;
  int32_t tau = -1;  // the student's <tau>; -1: it has none
};

class Decoder {
 public:
  // `teacher` may be null for methods of one model.
  Decoder(std::string device, std::shared_ptr<const T5> student, std::shared_ptr<const T5> teacher, Method method,
          SpecialTokens special);

  // Thread-safe: what a call changes is its own.
  GenerateResult generate(const GenerateRequest& request) const;

 private:
  std::string device_;
  std::shared_ptr<const T5> student_, teacher_;
  Method method_;
  SpecialTokens special_;
};

}  // namespace kdtw
