// The simulated device from inside: threads, warps, blocks, the launch that runs, and who switches between them.
// Everything here runs on one host thread at a time; the runtime's entry points hold a lock.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "cuda_runtime.h"

namespace simt {

inline constexpr size_t kStackBytes = 128 * 1024;
inline constexpr size_t kSharedBytes = 256 * 1024;  // address space of a block's shared memory, gaps included
inline constexpr size_t kSharedLimit = 48 * 1024;   // of a kernel's __shared__ arrays
inline constexpr size_t kSharedGap = 64;            // unusable bytes after each array: running over it is seen

struct Error {
  std::string text;
};

enum class State : uint8_t { kReady, kAtBarrier, kInCollective, kExited };

struct Block;
struct Warp;

struct Thread {
  Coordinates where;
  Block* block;
  Warp* warp;
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // none before it first runs and after its end
  State state = State::kReady;
  bool predicate = false;
  unsigned lane, index;   // index: in the grid
  uint64_t result = 0;    // of the barrier or collective it waited for
  Site site{nullptr, 0};  // where it waits
  uint32_t mark = 0;      // the checker's name for this thread at this point
};

// Lanes of a warp that wait for each other.
struct Collective {
  WarpOp op;
  Site site;
  unsigned arrived = 0;  // lanes; 0: nobody waits
  uint64_t values[32];
  int arguments[32];
};

struct Warp {
  unsigned index = 0;  // in the grid
  unsigned live = 0;   // lanes that have not exited
  uint32_t epoch = 0;  // __syncwarp so far
  Collective collective;
  Thread* lanes[32] = {};
};

struct SharedArray {
  Site site;
  const char* name;
  size_t offset, bytes;
};

struct Block {
  unsigned index;
  int live = 0, waiting = 0;
  Site barrier{nullptr, 0};  // where the waiting threads wait
  uint32_t epoch = 0;        // block barriers so far
  std::vector<Warp> warps;
  std::vector<Thread> threads;
  char* shared = nullptr;
  void* shadow = nullptr;  // what the checker knows of it
  size_t shared_top = 0;   // end of what is in use
  size_t shared_used = 0;  // without gaps, as the GPU counts it
  std::vector<SharedArray> arrays;
};

struct Launch {
  const Work* work;
  uint32_t id;
  unsigned block_count, block_threads;
  int live = 0;                                // threads that have not exited
  std::vector<std::unique_ptr<Block>> blocks;  // that run now
  std::vector<std::string> errors;
  bool aborted = false;
};

extern Launch* launch_now;  // null between launches
extern Thread* thread_now;  // null outside kernels

std::string describe(Site site);
std::string describe(const Thread& thread);
[[noreturn]] void fail(const std::string& text);  // throws Error; ends the thread and the launch
void report(const std::string& text);             // notes an error of the running launch, which goes on
[[noreturn]] void abandon_thread();               // after report, where the thread cannot go on: ends the launch

// Runs a kernel to its end on the calling host thread; throws Error with everything that was reported.
void run_launch(const Work& work);

void switch_to_scheduler();                         // the running thread waits; returns when it is resumed
void make_ready(Thread* const* threads, size_t n);  // ascending; queued in the schedule's order
void warp_may_complete(Warp& warp);                 // after a lane arrived or exited
void block_may_pass(Block& block);                  // after a thread arrived or exited
// The next `bytes` of a block's shared memory, full of NaNs, with a gap after them.
void give_shared(Block& block, const SharedArray& array);

// Device memory: one reserved range; a freed address is never handed out again.
void* heap_allocate(size_t bytes);
void heap_free(void* p);  // throws Error where p is no allocation
bool in_heap(const void* p);
bool allocated(const void* p, size_t bytes);  // all of it, within one allocation
char* heap_base();
// Addresses that nothing has touched; they cost memory once they are written.
char* reserve_addresses(size_t bytes);
inline constexpr size_t kHeapBytes = size_t{1} << 35;
inline constexpr size_t kMemoryBytes = size_t{16} << 30;  // that may be allocated at a time
size_t heap_live_bytes();

}  // namespace simt
