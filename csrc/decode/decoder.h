// What decodes: models, the method's rules and the special tokens. Immutable, and shared by its sessions.
#pragma once

#include <algorithm>
#include <memory>
#include <string>
#include <vector>

#include "decode/rules.h"
#include "model/t5.h"

namespace kdtw {

struct SpecialTokens {
  int32_t start = 0;
  std::vector<int32_t> end;
  int32_t tau = -1;  // the student's <tau>; -1: it has none

  bool is_end(int32_t token) const { return std::find(end.begin(), end.end(), token) != end.end(); }
};

struct Decoder {
  std::string device;
  std::shared_ptr<const T5> student, teacher;  // the teacher may be null for methods of one model
  Method method;
  SpecialTokens special;
};

}  // namespace kdtw
