// Warp collectives: shuffles, votes, __syncwarp and the tensor-core step. Lanes arrive one by one; the last one that
// the mask names computes every lane's result.
#include <bit>
#include <vector>

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

// The lane that `lane` reads in a shuffle.
int source_lane(const Collective& c, int lane) {
  const int first = lane & ~(c.width - 1), argument = c.arguments[lane];
  int source = lane;
  switch (c.op) {
    case WarpOp::kIndex:
      return first | (argument & (c.width - 1));
    case WarpOp::kUp:
      source = lane - argument;
      return source < first ? lane : source;
    case WarpOp::kDown:
      source = lane + argument;
      break;
    default:
      source = lane ^ argument;
      break;
  }
  return source >= first + c.width ? lane : source;
}

uint64_t result_of(const Collective& c, int lane, unsigned ballot) {
  switch (c.op) {
    case WarpOp::kSync:
    case WarpOp::kMma:
      return 0;
    case WarpOp::kBallot:
      return ballot;
    case WarpOp::kAny:
      return ballot != 0;
    case WarpOp::kAll:
      return ballot == c.arrived;
    default:
      break;
  }
  const int source = source_lane(c, lane);
  if (source >= 0 && source < 32 && (c.arrived >> source & 1)) return c.values[source];
  report("shuffle at " + describe(c.site) + ": lane " + std::to_string(lane) + " reads lane " + std::to_string(source) +
         ", which does not take part");
  return 0x7fc0dead7fc0deadull;  // undefined; as floats, NaN
}

void complete(Warp& warp, Collective& c) {
  if (c.op == WarpOp::kMma) multiply(c);
  unsigned ballot = 0;
  for (int i = 0; i < 32; ++i) ballot |= unsigned{(c.arrived >> i & 1) && c.values[i]} << i;
  Thread* threads[32];
  size_t n = 0;
  for (int i = 0; i < 32; ++i) {
    if (!(c.arrived >> i & 1)) continue;
    warp.lanes[i]->result = result_of(c, i, ballot);
    threads[n++] = warp.lanes[i];
  }
  if (c.op == WarpOp::kSync) {
    if ((c.arrived & warp.live) == warp.live) ++warp.epoch;
    check::met(threads, n);
  }
  c.pending = false;
  make_ready(threads, n);
}

bool all_arrived(const Warp& warp, const Collective& c) { return (c.arrived & warp.live) == (c.mask & warp.live); }

}  // namespace

void warp_may_complete(Warp& warp) {
  for (Collective& c : warp.collectives) {
    if (c.pending && all_arrived(warp, c)) complete(warp, c);
  }
}

uint64_t warp_collective(Site site, WarpOp op, unsigned mask, uint64_t value, int argument, int width) {
  Thread& thread = *thread_now;
  Warp& warp = *thread.warp;
  const unsigned bit = 1u << thread.lane;
  if (!(mask & bit)) {
    fail("warp collective at " + describe(site) + ": lane " + std::to_string(thread.lane) +
         " calls it and is not in its mask");
  }
  if (!std::has_single_bit(static_cast<unsigned>(width)) || width > 32) {
    fail("shuffle at " + describe(site) + " with width " + std::to_string(width) + ", not a power of two up to 32");
  }
  Collective* mine = nullptr;
  for (Collective& c : warp.collectives) {
    if (c.pending && c.mask == mask && c.op == op && c.width == width && !(c.arrived & bit)) mine = &c;
  }
  if (mine && mine->site.line != site.line) {
    report("divergent warp collective: lane " + std::to_string(thread.lane) + " is at " + describe(site) +
           " while others wait at " + describe(mine->site));
  }
  if (!mine) {
    for (Collective& c : warp.collectives) {
      if (!c.pending) mine = &c;
    }
    if (!mine) fail("too many warp collectives pending at " + describe(site));
    mine->pending = true;
    mine->op = op;
    mine->mask = mask;
    mine->arrived = 0;
    mine->width = width;
    mine->site = site;
  }
  mine->arrived |= bit;
  mine->values[thread.lane] = value;
  mine->arguments[thread.lane] = argument;
  thread.site = site;
  thread.state = State::kInCollective;
  if (all_arrived(warp, *mine)) complete(warp, *mine);
  switch_to_scheduler();
  return thread.result;
}

unsigned lane() { return thread_now->lane; }

void mma(Site site, const uint32_t* a, const uint32_t* b, float* d) {
  const Fragments fragments{a, b, d};
  warp_collective(site, WarpOp::kMma, ~0u, reinterpret_cast<uint64_t>(&fragments), 0, 32);
}

}  // namespace simt
