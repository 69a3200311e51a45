// What decodes: models, the method's rules and the special tokens. Immutable, and shared by its sessions, but for what
// one session leaves to the next.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "core/spare.h"
#include "decode/rules.h"
#include "model/transformer.h"

namespace kdtw {

struct SpecialTokens {
  int32_t start = 0;
  std::vector<int32_t> end;
  // The student's <tau>, one for each teacher it may ask; behind them ids that are never picked. Empty: it has none.
  std::vector<int32_t> tau;

  bool is_end(int32_t token) const { return std::find(end.begin(), end.end(), token) != end.end(); }
};

struct Decoder {
  std::string device;
  std::shared_ptr<const Transformer> student;
  std::vector<std::shared_ptr<const Transformer>>
      teachers;  // n: none for methods of one model, several where <tau> chooses
  MethodRules method;
  SpecialTokens special;
  int vocabulary;  // the rows that all models have: others than the student's <tau> are never picked
  std::shared_ptr<Spare> spare = std::make_shared<Spare>();  // Lanes

  // Ids that the student picks from.
  int student_vocabulary() const {
    int32_t rows = vocabulary;
    for (const int32_t tau : special.tau) rows = std::max(rows, tau + 1);
    return rows;
  }
};

}  // namespace kdtw
