// A process-wide pool that runs one parallel region at a time: workers spin for a moment, then sleep.
// A caller that finds the pool busy (another Python thread is decoding) does all of the work alone, which
// gives the same bits. After fork() the child starts a pool of its own.
#pragma once

#include <algorithm>
#include <atomic>
#include <type_traits>

namespace kdtw::cpu {

// What a body is asked for: items [begin, end). Its thread is likely to go on up to `ahead`; `part` is the thread's
// number in this region, the caller's is 0.
struct Range {
  int begin, end, ahead, part;
  const std::atomic<bool>* failed = nullptr;  // of the region; null where there is one thread

  // A body that takes long calls it now and then: it throws when another thread's body has thrown, because nobody
  // wants the result any more.
  void stop_if_failed() const {
    if (failed != nullptr && failed->load(std::memory_order_relaxed)) throw Stopped();
  }
  struct Stopped {};
};

using RangeFunction = void (*)(void* body, const Range& range);

// parallel_for for a body behind a pointer; parts >= 2.
void run_ranges(int count, int grain, int parts, RangeFunction function, void* body);
// Processors that this process may use, at least 1.
int hardware_threads();

// The most threads that parallel_for takes: a body's own memory, indexed by Range::part, needs so many places.
inline int parts_of(int count, int grain, int threads) {
  return std::max(1, std::min(count / grain + (count % grain != 0), threads));
}

// body(begin, end), or body(Range), over [0, count), in ranges that cover it once and whose bounds are multiples of
// `grain`, on at most `threads` threads, the calling one among them. Each thread has a contiguous share, the same one
// every time, which it works off in a few pieces; who is done takes pieces from the end of another's share. So a thread
// that the machine keeps waiting holds nobody up, and one that never comes costs nothing.
//
// An exception of the body comes out here, the first of several, when no thread is inside the body any more; items may
// then not have been asked for. Where the system gives no further threads, those that there are do the work, at least
// the calling one.
template <typename Body>
void parallel_for(int count, int grain, int threads, Body&& body) {
  const RangeFunction run = [](void* raw, const Range& range) {
    auto& typed = *static_cast<std::remove_reference_t<Body>*>(raw);
    if constexpr (std::is_invocable_v<Body, const Range&>) {
      typed(range);
    } else {
      typed(range.begin, range.end);
    }
  };
  const int parts = parts_of(count, grain, threads);
  if (parts == 1) {
    if (count > 0) run(&body, {0, count, count, 0});
    return;
  }
  run_ranges(count, grain, parts, run, &body);
}

}  // namespace kdtw::cpu
