// Every method is one loop with two rules: when the student asks for the teacher (call), and how many of its drafted
// tokens stand (accept). A method is a few words of data; what they mean for a draft's steps is in core/draft.h.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/pass.h"

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

  // Whether the ledger is asked at every output, not only where the student chose <tau>.
  bool by_itself() const { return max_uniform < 1 || max_entropy < std::numeric_limits<double>::infinity(); }
};

struct AcceptRule {
  Check check = Check::kNone;     // kNone: all drafts stand
  double threshold = 0;           // see Check
  bool teacher_continues = true;  // when all drafts stand the teacher writes the next token
  bool checks_all = false;        // nothing leaves the loop unchecked: a row that ends calls first
};

// PickRequest::threshold of such a check.
inline double asked_threshold(Check check, double threshold) {
  if (check != Check::kLenience) return threshold;
  return threshold >= 1.0 ? std::numeric_limits<double>::infinity() : std::log(threshold);
}

struct MethodRules {
  bool two_models = false;
  bool teacher_alone = false;  // the one model is the teacher: tokens, calls, passes and log-probabilities are its own
  bool marks_teacher = false;  // the student reads which tokens which teacher wrote (beta, Eq. 13-15)
  CallRule call;
  AcceptRule accept;

  // Whether every call and every token that the teacher writes asks the ledger first: the student's <tau> does, and so
  // do calls by themselves, unless a draft's length or the student's doubt calls beside them, or a check replaces. A
  // method that never calls keeps any.
  bool keeps_ledger() const {
    const bool others = call.draft_length > 0 || call.min_confidence > 0 || accept.checks_all;
    return !others && !teacher_alone && (call.on_tau || accept.check == Check::kNone);
  }
};

// The hard bound on teacher tokens of one row: at every prefix of the output, teacher tokens <= max_calls
// and <= max_fraction * outputs.
struct Ledger {
  int max_calls = std::numeric_limits<int>::max();
  double max_fraction = 1.0;

  bool bounds() const { return max_calls != std::numeric_limits<int>::max() || max_fraction < 1.0; }
  bool allows(int calls, int position) const {
    return calls < max_calls && calls + 1 <= std::floor(max_fraction * (position + 1) + 1e-9);
  }
  // The first position from `position` on, before `end`, where a teacher's token is allowed if none is called before.
  int first_allowed(int calls, int position, int end) const {
    if (calls >= max_calls) return end;
    while (position < end && !allows(calls, position)) ++position;
    return position;
  }
  // The first position that a check may replace by a teacher token without breaking the fraction.
  int first_replaceable(int calls, int position) const {
    while (position > 0 && calls + 1 <= std::floor(max_fraction * position + 1e-9)) --position;
    return position;
  }
};

}  // namespace kdtw
