// What a kernel's body may use on the simulated device: coordinates, barriers, warp collectives, atomics and
// mathematics, spelled as CUDA spells them.
#pragma once

#include <cstddef>

#include "types.h"

namespace simt {

// Where in the source a synchronising call stands; barriers and warp collectives that meet must agree on it.
struct Site {
  const char* file;
  int line;
};

struct Coordinates {
  dim3 thread, block, block_size, grid_size;
};
extern Coordinates* here;  // of the running CUDA thread

enum class WarpOp { kSync, kIndex, kUp, kXor, kBallot, kAny, kMma };
enum class Reduce { kCount, kOr };

void syncthreads(Site site);
int syncthreads_reduce(Site site, bool predicate, Reduce kind);
// What a warp's lanes do together; returns the calling lane's result. mask: must name all lanes; those that have exited
// are not waited for.
uint64_t warp_collective(Site site, WarpOp op, unsigned mask, uint64_t value, int argument = 0);
unsigned lane();  // the running thread's
// One tensor-core step on a warp's fragments, D[16,8] += A[16,8] B[8,8], halves in, floats out, laid out as
// mma.sync.m16n8k8.row.col.f32.f16.f16.f32 lays them. Sums are made in double and rounded once.
void mma(Site site, const uint32_t* a, const uint32_t* b, float* d);

// A __shared__ array: one per block and declaration.
void* shared_slot(Site site, size_t bytes, size_t alignment, const char* name);
char* shared_base();  // address 0 of the block's shared memory, for translated kernels

void atomic_access(void* p, size_t n);  // announces a read-modify-write to the checker
[[noreturn]] void trap(Site site, const char* what);

template <typename T>
T shuffle(Site site, WarpOp op, unsigned mask, T value, int argument) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(site, op, mask, bits, argument);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

// A relaxed atomic of CUDA: no other CUDA thread runs between the load and the store.
template <typename T, typename F>
inline __attribute__((no_sanitize("thread"))) T atomic(T* p, F update) {
  atomic_access(p, sizeof(T));
  const T old = *const_cast<volatile T*>(p);
  *const_cast<volatile T*>(p) = update(old);
  return old;
}

template <typename To, typename From>
To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace simt

#define SIMT_SITE \
  ::simt::Site { __FILE__, __LINE__ }
#define threadIdx (::simt::here->thread)
#define blockIdx (::simt::here->block)
#define blockDim (::simt::here->block_size)
#define gridDim (::simt::here->grid_size)
inline constexpr int warpSize = 32;

// ---------------------------------------------------------------- barriers and warp collectives
#define __syncthreads() ::simt::syncthreads(SIMT_SITE)
#define __syncthreads_count(p) ::simt::syncthreads_reduce(SIMT_SITE, (p), ::simt::Reduce::kCount)
#define __syncthreads_or(p) ::simt::syncthreads_reduce(SIMT_SITE, (p), ::simt::Reduce::kOr)
#define SIMT_SHUFFLE(op, mask, value, argument) \
  ::simt::shuffle(SIMT_SITE, ::simt::WarpOp::op, (mask), (value), (int)(argument))
#define __shfl_sync(mask, value, lane) SIMT_SHUFFLE(kIndex, mask, value, lane)
#define __shfl_up_sync(mask, value, distance) SIMT_SHUFFLE(kUp, mask, value, distance)
#define __shfl_xor_sync(mask, value, bits) SIMT_SHUFFLE(kXor, mask, value, bits)
#define SIMT_VOTE(op, mask, p) ::simt::warp_collective(SIMT_SITE, ::simt::WarpOp::op, (mask), (p) ? 1 : 0)
#define __ballot_sync(mask, p) ((unsigned)SIMT_VOTE(kBallot, mask, p))
#define __any_sync(mask, p) ((int)SIMT_VOTE(kAny, mask, p))
#define __syncwarp() ((void)SIMT_VOTE(kSync, 0xffffffffu, 0))

template <typename T>
inline T atomicAdd(T* p, std::type_identity_t<T> v) {
  return ::simt::atomic(p, [v](T old) -> T { return old + v; });
}

// ---------------------------------------------------------------- mathematics
// Approximate functions are computed as well as the host can: their last bits differ from a GPU's.
inline unsigned __float_as_uint(float f) { return ::simt::bits_as<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return ::simt::bits_as<float>(u); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
// Four products of signed bytes added to c.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
template <typename A, typename B>
inline std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(T(a), T(b));
  else
    return T(a) < T(b) ? T(a) : T(b);
}
template <typename A, typename B>
inline std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(T(a), T(b));
  else
    return T(a) > T(b) ? T(a) : T(b);
}
