// What a test may set and read: the schedule, the device's limits, what was counted. control.cpp makes C functions
// of it (kdtw_sim_*), which gpu_proof/simulated.py calls.
#pragma once

#include <cstdint>

namespace simt {

enum class Order { kForward, kReverse, kRandom };

struct Settings {
  Order order = Order::kForward;  // in which threads that may run and blocks that wait are taken
  bool depth_first = false;       // threads released by a barrier run before those that have not yet reached it
  uint64_t seed = 1;
  int resident_blocks = 1;        // blocks of a launch that run at a time, their threads interleaved
  bool lazy = false;              // work runs when the host waits for it, not when it is enqueued
  bool traffic = false;           // count memory requests (checked libraries)
  bool conditional_nodes = true;  // whether graphs may have loops
  int largest_loop = 1 << 30;     // nodes of a loop's body at most, else its graph is not instantiated
  int devices = 1;                // that share memory and kernels; a stream belongs to one of them
  uint64_t memory = 0;            // bytes of device memory, and of pinned memory, that there are; 0: all
  uint64_t host_memory = 0;
};
Settings& settings();

// Since the last reset.
// clang-format off
#define SIMT_COUNTERS(X)   \
  X(kernels)               /* kernels that ran, from graphs or not */           \
  X(graph_kernels)         /* of them, those that ran in graphs */              \
  X(host_launches)         /* kernels that the host launched, not captured */   \
  X(graph_launches)        /* graphs that the host launched */                  \
  X(host_synchronisations) /* calls in which the host waits for the device */   \
  X(copies_to_device) X(copies_to_host) X(copies_on_device) X(bytes_to_device)  \
  X(bytes_to_host) X(allocations) X(frees) X(allocated_bytes)          \
  X(host_allocations) X(host_frees) /* of pinned memory */                      \
  X(graphs)                /* that were instantiated */                         \
  X(device_choices)        /* calls of cudaSetDevice */                         \
  X(while_iterations)
// clang-format on
struct Counters {
#define X(name) uint64_t name = 0;
  SIMT_COUNTERS(X)
#undef X
};
Counters& counters();

}  // namespace simt
