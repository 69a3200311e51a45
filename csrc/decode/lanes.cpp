#include "decode/lanes.h"

#include <algorithm>

namespace kdtw {

Lanes::Lanes(const Decoder& decoder, const Size& size, int threads)
    : size(size), backend(make_backend(decoder.device, threads)) {
  student.emplace(backend, *decoder.student, decoder.student_vocabulary(), 0, decoder.method.marks_teacher, size.slots,
                  size.source_capacity, size.target_capacity);
  for (const auto& teacher : decoder.teachers)
    teachers.emplace_back(backend, *teacher, decoder.vocabulary, 1 + static_cast<int>(teachers.size()), false,
                          size.slots, size.source_capacity, size.target_capacity);
}

std::shared_ptr<Lanes> Lanes::of(const Decoder& decoder, const Size& size, int threads) {
  auto kept = std::static_pointer_cast<Lanes>(decoder.spare->take());
  if (kept && kept->resume(size)) return kept;
  kept.reset();  // its memory is free for what is made now
  return std::make_shared<Lanes>(decoder, size, threads);
}

void Lanes::leave(const Decoder& decoder, const std::shared_ptr<Lanes>& lanes) {
  if (lanes->rest()) decoder.spare->put(lanes);
}

bool Lanes::rest() { return student->rest() && std::ranges::all_of(teachers, &Lane::rest); }

// Sources may be shorter than what they were made for: a row's lengths are its own.
bool Lanes::resume(const Size& wanted) {
  const bool fits = wanted.slots == size.slots && wanted.source_capacity <= size.source_capacity &&
                    wanted.target_capacity == size.target_capacity && wanted.want_log_probs == size.want_log_probs;
  return fits && student->resume() && std::ranges::all_of(teachers, &Lane::resume);
}

}  // namespace kdtw
