#include "backend/cpu/memory_probe.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "backend/cpu/thread_pool.h"
#include "core/error.h"

namespace kdtw::cpu {
namespace {

constexpr size_t kLine = 8;            // words of a cache line
constexpr size_t kLinesAhead = 12;     // prefetched, per stream
constexpr size_t kGrain = 16 * kLine;  // words that every number of streams below divides into lines

// Sums `words` words, a multiple of kGrain, in `Streams` streams: one prefetcher follows each.
template <int Streams>
uint64_t sum(const uint64_t* data, size_t words) {
  uint64_t sums[kLine] = {};
  const size_t length = words / Streams;
  for (size_t i = 0; i < length; i += kLine) {
    for (int s = 0; s < Streams; ++s) {
      const uint64_t* line = data + s * length + i;
      __builtin_prefetch(line + kLinesAhead * kLine);
      for (size_t j = 0; j < kLine; ++j) sums[j] += line[j];
    }
  }
  uint64_t total = 0;
  for (const uint64_t part : sums) total += part;
  return total;
}

constexpr uint64_t (*kLoops[])(const uint64_t*, size_t) = {sum<1>, sum<4>, sum<8>, sum<16>};

}  // namespace

double read_rate(size_t bytes, int threads, int rounds) {
  const size_t words = bytes / sizeof(uint64_t) / (threads * kGrain) * kGrain;  // of one thread
  require(words > 0, "an array of ", bytes, " bytes is too small for ", threads, " threads to read");
  const size_t size = words * threads * sizeof(uint64_t);
  const std::unique_ptr<uint64_t, decltype(&std::free)> data(
      static_cast<uint64_t*>(std::aligned_alloc(kLine * sizeof(uint64_t), size)), std::free);
  if (!data) throw OutOfMemory(size);
  std::memset(data.get(), 1, size);
  std::atomic<uint64_t> sink{0};  // keeps the sums from being dropped
  double best = 0.0;
  for (int round = 0; round < rounds; ++round) {
    for (const auto loop : kLoops) {
      const auto start = std::chrono::steady_clock::now();
      parallel_for(threads, 1, threads, [&](int first, int last) {
        for (int part = first; part < last; ++part) sink += loop(data.get() + part * words, words);
      });
      const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
      best = std::max(best, static_cast<double>(size) / seconds.count());
    }
  }
  return best;
}

}  // namespace kdtw::cpu
