// What happens between two steps of a draft, on the device: the rules of core/draft.h are applied to what a step
// picked, and the inputs of the next step are written, so that the host need not look. One block; each thread has a
// row.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

// Records row i's pick and lets the rules move the row on.
__device__ __forceinline__ void take_pick(const KdtwDraft& draft, int i, DraftRow& row) {
  const PickResult pick = draft.decided[i];
  draft.picks[static_cast<size_t>(row.picks) * draft.width + i] = pick;
  take(draft.rules, row, pick);
}

// Writes what row i reads and asks in the next step. Rows that have stopped stay in the step, since its graph has a
// fixed number of rows; they read a token of length 0, which stores and sees nothing, and their pick is ignored.
__device__ __forceinline__ void prepare(const KdtwDraft& draft, int i, const DraftRow& row) {
  const bool drafts = row.stand == kDrafting;
  draft.ids[i] = drafts ? row.id : 0;
  draft.marked[i] = static_cast<uint8_t>(drafts ? row.marked : 0);
  const int at = row.offset + row.position;
  draft.self[i] = {row.row, at, drafts ? at + 1 : 0};
  draft.cross[i] = {row.row, row.position, drafts ? row.source_length : 0};
  draft.wanted[i] = i;
  draft.requests[i] =
      drafts ? ask(draft.rules, row, draft.banned + static_cast<size_t>(i) * draft.rules.stop_count) : PickRequest{};
}

// first: no step has run yet, so there are no picks to take. When an earlier call has ended the draft, this one changes
// nothing (the host may have launched steps ahead); all threads still reach every barrier.
__global__ void __launch_bounds__(kBlock) advance_kernel(KdtwDraft draft, int first) {
  KDTW_SHARED(int, scratch, kWarps);
  const bool runs = first || draft.state->go_on;
  int drafting = 0, unseen = 0, finished = 0;
  for (int i = threadIdx.x; runs && i < draft.width; i += kBlock) {
    DraftRow row = draft.rows[i];
    if (!first && row.stand == kDrafting) take_pick(draft, i, row);
    prepare(draft, i, row);
    draft.rows[i] = row;
    drafting += row.stand == kDrafting;
    unseen += row.stand > 0 && (row.unseen_by >> (row.stand - 1) & 1);
    finished += row.stand == kFinished && row.picks > 0;
  }
  drafting = block_reduce<Sum>(drafting, scratch);
  unseen = block_reduce<Sum>(unseen, scratch);
  finished = block_reduce<Sum>(finished, scratch);
  KdtwDraftState& state = *draft.state;
  bool called = false;
  for (int teacher = 1; teacher <= draft.rules.teachers; ++teacher) {
    int waiting = 0;
    for (int i = threadIdx.x; runs && i < draft.width; i += kBlock) waiting += draft.rows[i].stand == teacher;
    waiting = state.pause.waiting[teacher - 1] + block_reduce<Sum>(waiting, scratch);
    called |= call_now(waiting, drafting, state.pause.batch);
  }
  if (threadIdx.x == 0 && runs) {
    state.steps += !first;
    state.go_on = first || goes_on(state.pause, {state.steps, drafting, finished, unseen}, called);
  }
}

}  // namespace

int32_t advance(const KdtwDraft* draft, int32_t first, void* stream) {
  KDTW_LAUNCH(advance_kernel, dim3(1), dim3(kBlock), stream, *draft, first);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
