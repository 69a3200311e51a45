// The simulated device from inside: threads, warps, blocks, the launch that runs, and who switches between them.
// Everything here runs on one host thread at a time; the runtime's entry points hold a lock.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "control.h"
#include "cuda_runtime.h"

namespace simt {

inline constexpr size_t kStackBytes = 128 * 1024;
inline constexpr size_t kSharedBytes = 256 * 1024;  // address space of a block's shared memory, gaps included
inline constexpr size_t kDefaultSharedLimit = 48 * 1024;
inline constexpr size_t kSharedGap = 64;  // unusable bytes after each array: running over it is seen

struct Error {
  std::string text;
};

enum class State : uint8_t { kReady, kAtBarrier, kInCollective, kExited };

struct Block;
struct Warp;

// What a thread knows to have happened in other blocks before its present point (fence + atomic pairs): accesses of
// block b before its epoch blocks[b], of warp w before warps[w], of thread t before its fence number threads[t].
struct Knowledge {
  std::map<uint32_t, uint32_t> blocks, warps, threads;
  void merge(const Knowledge& other);
};

struct Thread {
  Coordinates where;
  Block* block;
  Warp* warp;
  void* stack_pointer = nullptr;
  char* stack = nullptr;  // none before it first runs and after its end
  State state = State::kReady;
  bool predicate = false;
  unsigned lane, index;  // index: in the grid
  unsigned fences = 0;
  uint64_t result = 0;    // of the barrier or collective it waited for
  Site site{nullptr, 0};  // where it waits
  // Knowledge: valid now; handed on by this thread's atomics (as of its last fence); read by an atomic, valid after the
  // next fence.
  std::shared_ptr<const Knowledge> known, published, acquired;
  uint32_t mark = 0;  // the checker's name for this thread at this point
};

// Lanes of a warp that wait for each other at one collective. Several may be pending, for different masks.
struct Collective {
  bool pending = false;
  WarpOp op;
  unsigned mask, arrived;
  int width;
  Site site;
  uint64_t values[32];
  int arguments[32];
};

struct Warp {
  unsigned index = 0;  // in the grid
  unsigned live = 0;   // lanes that have not exited
  uint32_t epoch = 0;  // __syncwarp of all live lanes so far
  Collective collectives[8];
  Thread* lanes[32] = {};
};

struct SharedArray {
  Site site;
  std::string name;
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
  std::string name;
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
void warp_may_complete(Warp& warp);                 // after a lane exited
void block_may_pass(Block& block);                  // after a thread arrived or exited

// Device memory: one reserved range; a freed address is never handed out again.
void* heap_allocate(size_t bytes);
void heap_free(void* p);  // throws Error where p is no allocation
bool in_heap(const void* p);
bool allocated(const void* p, size_t bytes);  // all of it, within one allocation
char* heap_base();
inline constexpr size_t kHeapBytes = size_t{1} << 35;
inline constexpr size_t kMemoryBytes = size_t{16} << 30;  // that may be allocated at a time
size_t heap_live_bytes();

std::string kernel_name(const void* kernel, const char* spelled);

// What a translated kernel keeps in shared memory before its dynamic part; null when `kernel` is not translated.
const std::vector<SharedArray>* translated_arrays(const void* kernel);

}  // namespace simt
