// The lanes of a session, with the device that they work on: its caches, memory and graphs. On a device where these
// take long to make, the next session of the same decoder takes them over.
#pragma once

#include <deque>
#include <memory>
#include <optional>

#include "decode/decoder.h"
#include "decode/lane.h"

namespace kdtw {

struct Lanes {
  // What graphs and memory are made for.
  struct Size {
    int slots, source_capacity, target_capacity;
    bool want_log_probs;
  };

  Lanes(const Decoder& decoder, const Size& size, int threads);
  // Those that an ended session has left where they serve, else new ones.
  static std::shared_ptr<Lanes> of(const Decoder& decoder, const Size& size, int threads);
  // Leaves them to the decoder's next session, where that pays.
  static void leave(const Decoder& decoder, const std::shared_ptr<Lanes>& lanes);

  const Size size;
  Backend backend;
  std::optional<Lane> student;
  std::deque<Lane> teachers;  // [k - 1]
  Buffer draft_logits;        // [slots, K, V_student], where a row's check needs them

 private:
  bool rest();
  bool resume(const Size& wanted);
};

}  // namespace kdtw
