// The likeliest tokens at each pick of a row that drafts.
#pragma once

#include <stdint.h>

#include <limits>
#include <vector>

#include "core/pass.h"

namespace kdtw {

inline constexpr TopToken kNoTop = {-1, std::numeric_limits<float>::quiet_NaN()};

struct TopPicks {
  std::vector<TopToken> tokens;  // [picks, count]

  // The request leaves its own behind those of the picks before.
  void put(PickRequest& request, int32_t count) {
    tokens.resize(tokens.size() + count, kNoTop);
    request.top = tokens.data() + tokens.size() - count, request.top_count = count;
  }
};

}  // namespace kdtw
