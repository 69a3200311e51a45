// What stands between two steps of a draft: the rules that the host would apply to a step's picks, and what the next
// step reads. One block, a thread a row.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

// uniform() of core/philox.h, bit for bit: Philox4x32-10 (Salmon et al. 2011).
__device__ __forceinline__ double uniform(uint64_t seed, uint64_t row, uint32_t position, uint32_t stream) {
  uint32_t counter[4] = {position, static_cast<uint32_t>(row), static_cast<uint32_t>(row >> 32), stream};
  uint32_t key[2] = {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = 0xD2511F53ull * counter[0], b = 0xCD9E8D57ull * counter[2];
    counter[0] = static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0];
    counter[1] = static_cast<uint32_t>(b);
    counter[2] = static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1];
    counter[3] = static_cast<uint32_t>(a);
    key[0] += 0x9E3779B9u, key[1] += 0xBB67AE85u;
  }
  return ((counter[0] >> 5) * 67108864.0 + (counter[1] >> 6)) / 9007199254740992.0;
}

__device__ __forceinline__ double draw(const KdtwDraft& draft, const KdtwDraftRow& row, uint32_t stream) {
  return uniform(draft.seed, row.key, static_cast<uint32_t>(row.position), stream);
}

// Where the row stands after its pick, which its position is behind already. What a pick was not asked for is 0 there.
__device__ __forceinline__ int judge(const KdtwDraft& draft, const KdtwDraftRow& row, const KdtwResult& pick) {
  if (!pick.finite) return kKdtwFinished;
  if (pick.confidence < draft.min_confidence || pick.entropy > draft.max_entropy) return 1;
  for (int s = 0; s < draft.stop_count; ++s)
    if (draft.stops[s].id == pick.id) return draft.stops[s].waits_for > 0 ? draft.stops[s].waits_for : kKdtwFinished;
  if (row.picks == row.limit) return row.waits_at_limit ? 1 : kKdtwFinished;
  if (row.position >= row.first_call && draw(draft, row, draft.call_stream) > draft.max_uniform) return 1;
  return kKdtwDrafting;
}

__device__ __forceinline__ void take(const KdtwDraft& draft, int i, KdtwDraftRow& row) {
  const KdtwResult pick = draft.decided[i];
  draft.picks[static_cast<size_t>(row.picks) * draft.width + i] = pick;
  ++row.picks, ++row.position;
  row.id = pick.id, row.marked = 0;
  row.stand = judge(draft, row, pick);
  if (row.keep_logits != nullptr) row.keep_logits += draft.vocabulary;
}

// A row that has stopped reads a token at an empty place, and nobody looks at what it picks.
__device__ __forceinline__ void prepare(const KdtwDraft& draft, int i, const KdtwDraftRow& row) {
  const bool drafts = row.stand == kKdtwDrafting;
  draft.ids[i] = drafts ? row.id : 0;
  draft.marked[i] = static_cast<uint8_t>(drafts ? row.marked : 0);
  draft.self[i] = {row.row, row.position, drafts ? row.position + 1 : 0};
  draft.cross[i] = {row.row, row.position, drafts ? row.source_length : 0};
  draft.wanted[i] = i;
  KdtwRequest& request = draft.requests[i];
  request.keep_logits = drafts ? row.keep_logits : nullptr;
  request.want_entropy = drafts && draft.by_entropy && row.position >= row.first_call;
  request.uniform = draw(draft, row, draft.stream);
  auto* const banned = const_cast<int32_t*>(request.banned);
  int count = 0;
  for (int s = 0; s < draft.stop_count; ++s)
    if (row.position < draft.first_allowed[static_cast<size_t>(i) * draft.stop_count + s])
      banned[count++] = draft.stops[s].id;
  request.banned_count = count;
}

__global__ void __launch_bounds__(kBlock) advance_kernel(KdtwDraft draft, int first) {
  KDTW_SHARED(int, scratch, kWarps);
  const bool runs = first || draft.state->go_on;
  int drafting = 0, unseen = 0, finished = 0;
  for (int i = threadIdx.x; runs && i < draft.width; i += kBlock) {
    KdtwDraftRow row = draft.rows[i];
    if (!first && row.stand == kKdtwDrafting) take(draft, i, row);
    prepare(draft, i, row);
    draft.rows[i] = row;
    drafting += row.stand == kKdtwDrafting;
    unseen += row.stand > 0 && (row.unseen_by >> (row.stand - 1) & 1);
    finished += row.stand == kKdtwFinished && row.picks > 0;
  }
  drafting = block_reduce<Sum>(drafting, scratch);
  unseen = block_reduce<Sum>(unseen, scratch);
  finished = block_reduce<Sum>(finished, scratch);
  KdtwDraftState& state = *draft.state;
  bool called = false;
  for (int teacher = 1; teacher <= draft.teachers; ++teacher) {
    int waiting = 0;
    for (int i = threadIdx.x; runs && i < draft.width; i += kBlock) waiting += draft.rows[i].stand == teacher;
    waiting = state.waiting[teacher - 1] + block_reduce<Sum>(waiting, scratch);
    called |= waiting > 0 && waiting >= (state.batch > 0 ? state.batch : drafting);  // call_now
  }
  if (threadIdx.x == 0 && runs)
    state.go_on = first || (drafting > 0 && !called && unseen == 0 && !(state.at_finish && finished > 0));
}

}  // namespace

int32_t advance(const KdtwDraft* draft, int32_t first, void* stream) {
  KDTW_LAUNCH(advance_kernel, dim3(1), dim3(kBlock), 0, static_cast<cudaStream_t>(stream), *draft, first);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
