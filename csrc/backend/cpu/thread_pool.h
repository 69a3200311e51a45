// A process-wide pool that runs one parallel region at a time: workers spin for a moment, then sleep.
// A caller that finds the pool busy (another Python thread is decoding) runs its parts alone, which
// gives the same bits. After fork() the child starts a pool of its own.
#pragma once

#include <type_traits>

namespace kdtw::cpu {

using PartFunction = void (*)(void* context, int part);

// Runs part 0..parts-1, part 0 on the calling thread.
void run_parts(int parts, PartFunction function, void* context);
int hardware_threads();

// body(begin, end) over [0, count) in at most `threads` contiguous pieces whose bounds are multiples of `grain`.
template <typename Body>
void parallel_for(int count, int grain, int threads, Body&& body) {
  const int chunks = (count + grain - 1) / grain;
  const int parts = chunks < threads ? chunks : threads;
  if (parts <= 1) {
    if (count > 0) body(0, count);
    return;
  }
  struct Context {
    std::remove_reference_t<Body>* body;
    int count, grain, chunks, parts;
  } context{&body, count, grain, chunks, parts};
  run_parts(
      parts,
      [](void* raw, int part) {
        const auto& c = *static_cast<Context*>(raw);
        const long chunks = c.chunks;
        const int begin = static_cast<int>(chunks * part / c.parts) * c.grain;
        int end = static_cast<int>(chunks * (part + 1) / c.parts) * c.grain;
        if (end > c.count) end = c.count;
        if (begin < end) (*c.body)(begin, end);
      },
      &context);
}

}  // namespace kdtw::cpu
