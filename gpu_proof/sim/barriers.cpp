// Block barriers and shared memory: what threads of a block do together.
#include <cstring>

#include "check.h"
#include "device.h"

namespace simt {
namespace {

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || !std::strcmp(a.file, b.file)); }

void wait_at_barrier(Site site, bool predicate) {
  Thread& thread = *thread_now;
  Block& block = *thread.block;
  if (block.waiting && !same(block.barrier, site)) {
    fail("divergent barrier: this thread is at " + describe(site) + " while others of its block wait at " +
         describe(block.barrier));
  }
  block.barrier = thread.site = site;
  thread.predicate = predicate;
  thread.state = State::kAtBarrier;
  ++block.waiting;
  block_may_pass(block);
  switch_to_scheduler();
}

}  // namespace

void syncthreads(Site site) { wait_at_barrier(site, false); }

int syncthreads_reduce(Site site, bool predicate, Reduce kind) {
  wait_at_barrier(site, predicate);
  const int set = static_cast<int>(thread_now->result);
  return kind == Reduce::kCount ? set : set > 0;
}

void block_may_pass(Block& block) {
  if (!block.waiting || block.waiting != block.live) return;
  const int exited = static_cast<int>(block.threads.size()) - block.live;
  if (exited) {
    report("barrier at " + describe(block.barrier) + " completes although " + std::to_string(exited) +
           " threads of the block have exited");
  }
  block.waiting = 0;
  ++block.epoch;
  std::vector<Thread*> waiting;
  uint64_t set = 0;
  for (Thread& thread : block.threads) {
    if (thread.state != State::kAtBarrier) continue;
    waiting.push_back(&thread);
    set += thread.predicate;
  }
  for (Thread* thread : waiting) thread->result = set;
  make_ready(waiting.data(), waiting.size());
}

void give_shared(Block& block, const SharedArray& array) {
  const size_t top = (array.offset + array.bytes + 2 * kSharedGap - 1) / kSharedGap * kSharedGap;
  block.shared_used += array.bytes;
  if (block.shared_used > kSharedLimit || top > kSharedBytes) {
    fail("__shared__ arrays of more than " + std::to_string(kSharedLimit) + " bytes");
  }
  std::memset(block.shared + array.offset, 0xff, top - array.offset);
  block.shared_top = top;
  check::shared_allocated(block, array.offset, array.bytes);
}

void* shared_slot(Site site, size_t bytes, size_t alignment, const char* name) {
  Block& block = *thread_now->block;
  for (const SharedArray& array : block.arrays) {
    if (same(array.site, site) && !std::strcmp(array.name, name)) return block.shared + array.offset;
  }
  const size_t offset = (block.shared_top + alignment - 1) / alignment * alignment;
  block.arrays.push_back({site, name, offset, bytes});
  give_shared(block, block.arrays.back());
  return block.shared + offset;
}

char* shared_base() { return thread_now->block->shared; }

void atomic_access(void* p, size_t n) { check::access(p, n, true, true, __builtin_return_address(0)); }

}  // namespace simt
