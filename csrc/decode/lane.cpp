#include "decode/lane.h"

#include <cassert>
#include <chrono>

namespace kdtw {
namespace {

class Stopwatch {
 public:
  explicit Stopwatch(double& seconds) : seconds_(seconds) {}
  ~Stopwatch() { seconds_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }

 private:
  double& seconds_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace

void Lane::open(std::span<const int> rows, std::span<const Row> all, const Poll& poll) {
  std::vector<int> closed;
  std::vector<std::vector<int32_t>> sources;
  for (const int r : rows) {
    if (state_.source_length[r] > 0) continue;
    closed.push_back(r);
    sources.push_back(reads_student_source_ ? all[r].student_source : all[r].teacher_source);
  }
  if (closed.empty()) return;
  Stopwatch watch(encode_seconds);
  model_.encode(backend_, state_, work_, closed, sources, poll);
}

void Lane::catch_up(std::span<const Row> rows, std::span<const Query> queries, std::span<PickResult> results,
                    const Poll& poll) {
  Stopwatch watch(decode_seconds);
  std::vector<InputToken> tokens;
  std::vector<int32_t> wanted;
  std::vector<PickRequest> requests;
  size_t answered = 0;
  const auto flush = [&] {
    if (tokens.empty()) return;
    model_.decode(backend_, state_, work_, tokens, wanted, poll);
    if (!requests.empty())
      backend_.pick(model_.head(), work_.gathered, requests, results.subspan(answered, requests.size()));
    answered += requests.size();
    tokens.clear(), wanted.clear(), requests.clear();
  };
  for (size_t q = 0; q < queries.size();) {
    const int r = queries[q].row;
    const Row& row = rows[r];
    size_t last = q;
    while (last + 1 < queries.size() && queries[last + 1].row == r) ++last;
    const int end = queries[last].after + 1;
    assert(queries[q].after >= read_[r]);
    for (int i = read_[r]; i < end; ++i) {
      if (static_cast<int>(tokens.size()) == T5::kMaxPass) flush();
      if (queries[q].after == i) {
        wanted.push_back(static_cast<int32_t>(tokens.size()));
        requests.push_back(queries[q].request);
        ++q;
      }
      const bool marked = reads_marks_ && written_by_teacher(row.owners[i]);
      tokens.push_back({row.tokens[i], r, i, marked});
    }
    read_[r] = end;
  }
  flush();
  ++passes;
}

}  // namespace kdtw
