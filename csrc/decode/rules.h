// Every method is one loop with two rules: when the student asks for the teacher (call), and how many of
// its drafted tokens stand (accept). Pure functions of results and counters; tested without a model.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "backend/backend.h"

namespace kdtw {

// Who wrote an output token. The codes are part of the Python API (kdtw_fast.outputs.Owner).
enum class Owner : uint8_t { kNone = 0, kStudent = 1, kTeacher = 2, kAccepted = 3, kCorrected = 4, kForced = 5 };

inline bool written_by_teacher(Owner owner) { return owner == Owner::kTeacher || owner == Owner::kCorrected; }

struct CallRule {
  bool on_tau = false;        // the student chose <tau> (Training Wheels)
  int draft_length = 0;       // this many tokens are drafted; 0 = no such limit
  double min_confidence = 0;  // the student's largest probability is below this (BiLD)
  // The controls: a keyed uniform number of [0, 1) exceeds max_uniform, or the entropy of the student's distribution,
  // in nats, max_entropy. The ledger bounds them as it bounds <tau>.
  double max_uniform = 1;
  double max_entropy = std::numeric_limits<double>::infinity();

  bool at_random() const { return max_uniform < 1; }
  bool by_entropy() const { return max_entropy < std::numeric_limits<double>::infinity(); }
  // What the pick was not asked for is 0 there, and calls for nobody.
  bool unsure(const PickResult& pick) const { return pick.confidence < min_confidence || pick.entropy > max_entropy; }
};

struct AcceptRule {
  Check check = Check::kNone;     // kNone: all drafts stand
  double threshold = 0;           // see Check
  bool teacher_continues = true;  // when all drafts stand the teacher writes the next token
  bool checks_all = false;        // nothing leaves the loop unchecked: a row that ends calls first
};

struct MethodRules {
  bool two_models = false;
  bool teacher_alone = false;  // the one model is the teacher: tokens, calls, passes and log-probabilities are its own
  bool marks_teacher = false;  // the student reads which tokens which teacher wrote (beta, Eq. 13-15)
  CallRule call;
  AcceptRule accept;
};

// How many tokens the student may draft now, with `room` outputs left. The teacher's own token needs a
// place when it continues after the drafts.
inline int draft_limit(const MethodRules& method, int room) {
  const int available = method.accept.checks_all && method.accept.teacher_continues ? room - 1 : room;
  return method.call.draft_length > 0 ? std::min(method.call.draft_length, available) : available;
}

// Whether the rows that wait for the teacher are served now, or held while others draft on. Holding makes the teacher's
// passes few and large, but thins out the student's. `batch` rows are enough, 0: as many as go on drafting, which is
// half of the rows that run.
inline bool call_now(int waiting, int drafting, int batch) {
  if (waiting == 0) return false;
  return drafting == 0 || waiting >= (batch > 0 ? batch : drafting);
}

// The hard bound on teacher tokens of one row: at every prefix of the output, teacher tokens <= max_calls
// and <= max_fraction * outputs.
struct Ledger {
  int max_calls = std::numeric_limits<int>::max();
  double max_fraction = 1.0;

  bool allows(int calls, int position) const {
    return calls < max_calls && calls + 1 <= std::floor(max_fraction * (position + 1) + 1e-9);
  }
  // The first position that a check may replace by a teacher token without breaking the fraction.
  int first_replaceable(int calls, int position) const {
    while (position > 0 && calls + 1 <= std::floor(max_fraction * position + 1e-9)) --position;
    return position;
  }
};

}  // namespace kdtw
