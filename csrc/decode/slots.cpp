// Rows come to a session's slots and leave them.
#include <algorithm>
#include <utility>

#include "core/error.h"
#include "decode/session.h"

namespace kdtw {

int Session::add(uint64_t key, Ledger ledger, std::vector<int32_t> student_source,
                 std::vector<std::vector<int32_t>> teacher_sources, std::vector<Ledger> own_ledgers,
                 const RowOptions* options) {
  Turn turn(*this);
  if (free_.empty()) throw std::runtime_error("this session has no free slot; run() until a row has finished");
  const size_t n = teachers_.size();
  require(teacher_sources.size() <= n && own_ledgers.size() <= n, "this session has ", n, " teachers, but got ",
          teacher_sources.size(), " sources and ", own_ledgers.size(), " ledgers for them");
  teacher_sources.resize(n);
  own_ledgers.resize(n);
  const bool bound = ledger.bounds() || std::ranges::any_of(own_ledgers, &Ledger::bounds);
  require(!bound || method_.keeps_ledger(), "this method asks no ledger before it calls the teacher; leave out limits");
  size_t longest = student_source.size();
  for (auto& source : teacher_sources) {
    if (source.empty()) source = student_source;
    longest = std::max(longest, source.size());
  }
  require(!student_source.empty() && longest <= static_cast<size_t>(source_capacity_), "a source must have 1 to ",
          source_capacity_, " tokens in this session, got ", longest);
  Row row;
  row.options = options ? *options : options_.row;
  const int most = row.options.max_new_tokens;
  require(most >= 1 && most <= options_.row.max_new_tokens, "a row of this session has 1 to ",
          options_.row.max_new_tokens, " max_new_tokens, got ", most);
  const std::vector<int32_t>& forced = row.options.forced_tokens;
  require(forced.size() <= static_cast<size_t>(most), "forced_tokens has ", forced.size(),
          " tokens, more than max_new_tokens=", most);
  row.index = added_rows_++;
  row.key = key;
  row.check = method_.accept.check;
  // A sampling teacher turns the exact match of speculative decoding into rejection sampling.
  if (row.check == Check::kLenience && method_.accept.checks_all && row.options.teacher_sampling.temperature > 0)
    row.check = Check::kRejection;
  if (needs_draft_logits(row.check) && !lanes_->draft_logits.data)
    lanes_->draft_logits =
        backend_.operations->allocate(rows_.size() * static_cast<size_t>(rules_.draft_length) * rules_.vocabulary);
  row.ledger = ledger;
  row.own_ledgers = std::move(own_ledgers);
  row.own_calls.assign(teachers(), 0);
  row.sources.push_back(std::move(student_source));
  for (auto& source : teacher_sources) row.sources.push_back(std::move(source));
  row.added = Clock::now();
  append(row, decoder_->special.start, Owner::kNone);
  for (const int32_t token : forced) append(row, token, Owner::kForced);
  row.own_begin = row.looked_at = static_cast<int>(row.tokens.size());
  rows_[free_.back()] = std::move(row);
  added_.push_back(free_.back());
  free_.pop_back();
  return added_rows_ - 1;
}

bool Session::drop(int index) {
  Turn turn(*this);
  for (auto* slots : {&added_, &running_})
    for (const int slot : *slots)
      if (rows_[slot].index == index) {
        leave(slot);
        std::erase(*slots, slot);
        return true;
      }
  return false;
}

void Session::admit(const Poll& poll) {
  if (method_.accept.checks_all) teachers_.front().open_soon(added_, rows_, poll);  // all will need it
  student_->open(added_, rows_, poll);
  for (const int slot : added_) begin_draft(slot);
  running_.insert(running_.end(), added_.begin(), added_.end());
  added_.clear();
}

// Rows that have finished leave their slots.
void Session::retire() {
  std::erase_if(running_, [&](int slot) {
    Row& row = rows_[slot];
    if (row.running()) return false;
    fault_ |= row.finish == Finish::kFault;
    finished_.push_back(std::move(row));
    leave(slot);
    return true;
  });
}

void Session::leave(int slot) {
  student_->release(slot);
  for (Lane& teacher : teachers_) teacher.release(slot);
  free_.push_back(slot);
}

}  // namespace kdtw
