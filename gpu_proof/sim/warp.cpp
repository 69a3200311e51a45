// Warp collectives: shuffles, votes, __syncwarp and the tensor-core step. Lanes arrive one by one; the last one
// computes every lane's result.
#include "check.h"
#include "cuda_fp16.h"
#include "device.h"

namespace simt {
namespace {

struct Fragments {
  const uint32_t *a, *b;
  float* d;
};

float element(const uint32_t* registers, int i) {
  return float(__ushort_as_half(static_cast<uint16_t>(registers[i / 2] >> (16 * (i % 2)))));
}

// PTX ISA, "Matrix Fragments for mma.m16n8k8": lane = 4 * group + member holds of A the rows group and
// group + 8, of B the column group, of D the columns 2 * member and 2 * member + 1.
void multiply(const Collective& collective) {
  if (collective.arrived != ~0u) {
    report("mma at " + describe(collective.site) + " without all 32 lanes");
    return;
  }
  const auto fragments = [&](int lane) { return reinterpret_cast<const Fragments*>(collective.values[lane]); };
  double a[16][8], b[8][8], d[16][8];
  for (int lane = 0; lane < 32; ++lane) {
    const Fragments& f = *fragments(lane);
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) a[group + i / 2 * 8][2 * member + i % 2] = element(f.a, i);
    for (int i = 0; i < 2; ++i) b[2 * member + i][group] = element(f.b, i);
    for (int i = 0; i < 4; ++i) d[group + i / 2 * 8][2 * member + i % 2] = f.d[i];
  }
  for (int row = 0; row < 16; ++row) {
    for (int column = 0; column < 8; ++column) {
      for (int i = 0; i < 8; ++i) d[row][column] += a[row][i] * b[i][column];
    }
  }
  for (int lane = 0; lane < 32; ++lane) {
    const int group = lane / 4, member = lane % 4;
    for (int i = 0; i < 4; ++i) {
      fragments(lane)->d[i] = static_cast<float>(d[group + i / 2 * 8][2 * member + i % 2]);
    }
  }
}

uint64_t result_of(const Collective& c, int lane, unsigned ballot) {
  int source = lane;
  switch (c.op) {
    case WarpOp::kSync:
    case WarpOp::kMma:
      return 0;
    case WarpOp::kBallot:
      return ballot;
    case WarpOp::kAny:
      return ballot != 0;
    case WarpOp::kIndex:
      source = c.arguments[lane] & 31;
      break;
    case WarpOp::kUp:
      if (c.arguments[lane] <= lane) source = lane - c.arguments[lane];
      break;
    case WarpOp::kXor:
      source = (lane ^ c.arguments[lane]) & 31;
      break;
  }
  if (c.arrived >> source & 1) return c.values[source];
  report("shuffle at " + describe(c.site) + ": lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
         ", which does not take part");
  return 0x7fc0dead7fc0deadull;  // undefined; as floats, NaN
}

}  // namespace

void warp_may_complete(Warp& warp) {
  Collective& c = warp.collective;
  if (!c.arrived || (c.arrived & warp.live) != warp.live) return;
  if (c.op == WarpOp::kMma) multiply(c);
  if (c.op == WarpOp::kSync) ++warp.epoch;
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= unsigned{(c.arrived >> i & 1) && c.values[i]} << i;
  Thread* threads[32];
  size_t n = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(c.arrived >> i & 1)) continue;
    warp.lanes[i]->result = result_of(c, i, ballot);
    threads[n++] = warp.lanes[i];
  }
  c.arrived = 0;
  make_ready(threads, n);
}

uint64_t warp_collective(Site site, WarpOp op, unsigned mask, uint64_t value, int argument) {
  Thread& thread = *thread_now;
  Collective& c = thread.warp->collective;
  if (mask != ~0u)
    fail("warp collective at " + describe(site) + " of a part of the warp: the simulated device has none");
  if (!c.arrived) {
    c.op = op;
    c.site = site;
  } else if (c.op != op || c.site.line != site.line) {
    fail("divergent warp collective: lane " + std::to_string(thread.lane) + " is at " + describe(site) +
         " while others wait at " + describe(c.site));
  }
  c.arrived |= 1u << thread.lane;
  c.values[thread.lane] = value;
  c.arguments[thread.lane] = argument;
  thread.site = site;
  thread.state = State::kInCollective;
  warp_may_complete(*thread.warp);
  switch_to_scheduler();
  return thread.result;
}

void mma(Site site, const uint32_t* a, const uint32_t* b, float* d) {
  const Fragments fragments{a, b, d};
  warp_collective(site, WarpOp::kMma, ~0u, reinterpret_cast<uint64_t>(&fragments));
}

}  // namespace simt
