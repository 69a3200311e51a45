// A process-wide pool that runs one parallel region at a time: workers spin for a moment, then sleep.
// A caller that finds the pool busy (another Python thread is decoding) does all of the work alone, which
// gives the same bits. After fork() the child starts a pool of its own.
#pragma once

#include <type_traits>

namespace kdtw::cpu {

using RangeFunction = void (*)(void* body, int begin, int end, int ahead);

// parallel_for for a body behind a pointer; parts >= 2.
void run_ranges(int count, int grain, int parts, RangeFunction function, void* body);
int hardware_threads();

// body(begin, end) over [0, count), in ranges that cover it once and whose bounds are multiples of `grain`, on at most
// `threads` threads, the calling one among them. Each thread has a contiguous share, the same one every time, which it
// works off in a few pieces; who is done takes pieces from the end of another's share. So a thread that the machine
// keeps waiting holds nobody up, and one that never comes costs nothing. A body that takes a third argument is told up
// to where its thread will go on, if nobody takes it away.
template <typename Body>
void parallel_for(int count, int grain, int threads, Body&& body) {
  const int chunks = (count + grain - 1) / grain;
  const int parts = chunks < threads ? chunks : threads;
  constexpr bool kWantsAhead = std::is_invocable_v<Body, int, int, int>;
  const RangeFunction run = [](void* raw, int begin, int end, [[maybe_unused]] int ahead) {
    auto& typed = *static_cast<std::remove_reference_t<Body>*>(raw);
    if constexpr (kWantsAhead) {
      typed(begin, end, ahead);
    } else {
      typed(begin, end);
    }
  };
  if (parts <= 1) {
    if (count > 0) run(&body, 0, count, count);
    return;
  }
  run_ranges(count, grain, parts, run, &body);
}

}  // namespace kdtw::cpu
