// The rate at which this machine reads memory: the roof of a pass that is bound by its weights.
#pragma once

#include <cstddef>

namespace kdtw::cpu {

// Best bytes per second of `rounds` reads of an array of `bytes` bytes by `threads` threads, over several read loops
// (they differ in how many streams a thread reads at once). Throws OutOfMemory.
double read_rate(size_t bytes, int threads, int rounds);

}  // namespace kdtw::cpu
