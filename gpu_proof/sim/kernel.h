// What a kernel's body may use on the simulated device: coordinates, barriers, warp collectives, atomics, fences,
// cached loads and mathematics, spelled as CUDA spells them.
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

enum class WarpOp { kSync, kIndex, kUp, kDown, kXor, kBallot, kAny, kAll, kMatch, kMma };
enum class Reduce { kCount, kAnd, kOr };

void syncthreads(Site site);
int syncthreads_reduce(Site site, bool predicate, Reduce kind);
void grid_sync(Site site);
// What all lanes of `mask` do together; returns the calling lane's result. width: of shuffle segments.
uint64_t warp_collective(Site site, WarpOp op, unsigned mask, uint64_t value, int argument, int width);
unsigned lane();
// One tensor-core step on a warp's fragments, D[16,8] += A[16,k] B[k,8] with k = 8 or 16, halves in, floats out, laid
// out as mma.sync.m16n8k{8,16}.row.col.f32.f16.f16.f32 lays them. Sums are made in double and rounded once.
void mma_f16(Site site, const uint32_t* a, const uint32_t* b, float* d, int k);
// The same for bfloat16, which exists from sm_80 on.
void mma_bf16(Site site, const uint32_t* a, const uint32_t* b, float* d, int k);

// A __shared__ array: one per block and declaration. dynamic_shared: what the launch asked for.
void* shared_slot(Site site, size_t bytes, size_t alignment, const char* name);
void* dyn_shared();
void* shared_base();  // address 0 of the block's shared memory, for translated kernels

void fence();                                  // __threadfence
void yield();                                  // lets other threads run; for loops that wait
void atomic_access(void* p, size_t n);         // announces a read-modify-write to the checker
void read_only_load(const void* p, size_t n);  // announces a load through the read-only cache (__ldg)
[[noreturn]] void trap(Site site, const char* what);

template <typename T>
T shuffle(Site site, WarpOp op, unsigned mask, T value, int argument, int width) {
  static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = warp_collective(site, op, mask, bits, argument, width);
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
#define __syncthreads_and(p) ::simt::syncthreads_reduce(SIMT_SITE, (p), ::simt::Reduce::kAnd)
#define __syncthreads_or(p) ::simt::syncthreads_reduce(SIMT_SITE, (p), ::simt::Reduce::kOr)
#define SIMT_SHUFFLE(...) SIMT_SHUFFLE_(__VA_ARGS__, 32, 32)
#define SIMT_SHUFFLE_(op, mask, value, argument, width, ...) \
  ::simt::shuffle(SIMT_SITE, ::simt::WarpOp::op, (mask), (value), (int)(argument), (int)(width))
#define __shfl_sync(...) SIMT_SHUFFLE(kIndex, __VA_ARGS__)
#define __shfl_up_sync(...) SIMT_SHUFFLE(kUp, __VA_ARGS__)
#define __shfl_down_sync(...) SIMT_SHUFFLE(kDown, __VA_ARGS__)
#define __shfl_xor_sync(...) SIMT_SHUFFLE(kXor, __VA_ARGS__)
#define SIMT_VOTE(op, mask, p) ::simt::warp_collective(SIMT_SITE, ::simt::WarpOp::op, (mask), (p) ? 1 : 0, 0, 32)
#define __ballot_sync(mask, p) ((unsigned)SIMT_VOTE(kBallot, mask, p))
#define __any_sync(mask, p) ((int)SIMT_VOTE(kAny, mask, p))
#define __all_sync(mask, p) ((int)SIMT_VOTE(kAll, mask, p))
#define __match_any_sync(mask, v) \
  ((unsigned)::simt::warp_collective(SIMT_SITE, ::simt::WarpOp::kMatch, (mask), (uint64_t)(v), 0, 32))
#define SIMT_SYNCWARP(mask, ...) ((void)::simt::warp_collective(SIMT_SITE, ::simt::WarpOp::kSync, (mask), 0, 0, 32))
#define __syncwarp(...) SIMT_SYNCWARP(__VA_OPT__(__VA_ARGS__, ) 0xffffffffu)

// ---------------------------------------------------------------- memory
inline void __threadfence() { ::simt::fence(); }
inline void __threadfence_system() { ::simt::fence(); }
inline void __threadfence_block() {}
inline void __nanosleep(unsigned) { ::simt::yield(); }
template <typename T>
inline T __ldg(const T* p) {
  ::simt::read_only_load(p, sizeof(T));
  return *p;
}
template <typename T>
inline T __ldcg(const T* p) {
  return *p;
}
template <typename T>
inline T __ldcs(const T* p) {
  return *p;
}
template <typename T>
inline void __stcg(T* p, T v) {
  *p = v;
}
template <typename T>
inline void __stcs(T* p, T v) {
  *p = v;
}

#define SIMT_ATOMIC(name, result)                                 \
  template <typename T>                                           \
  inline T name(T* p, std::type_identity_t<T> v) {                \
    return ::simt::atomic(p, [v](T old) -> T { return result; }); \
  }
SIMT_ATOMIC(atomicAdd, old + v)
SIMT_ATOMIC(atomicSub, old - v)
SIMT_ATOMIC(atomicMax, old > v ? old : v)
SIMT_ATOMIC(atomicMin, old < v ? old : v)
SIMT_ATOMIC(atomicExch, (void(old), v))
SIMT_ATOMIC(atomicOr, old | v)
SIMT_ATOMIC(atomicAnd, old& v)
SIMT_ATOMIC(atomicXor, old ^ v)
SIMT_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
SIMT_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef SIMT_ATOMIC
template <typename T>
inline T atomicCAS(T* p, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return ::simt::atomic(p, [=](T old) -> T { return old == expected ? v : old; });
}

// ---------------------------------------------------------------- mathematics
// Approximate functions are computed as well as the host can: their last bits differ from a GPU's.
inline float __expf(float x) { return expf(x); }
inline float __exp2f(float x) { return exp2f(x); }
inline float __logf(float x) { return logf(x); }
inline float __log2f(float x) { return log2f(x); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __frsqrt_rn(float x) { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }
inline int __float2int_rn(float x) { return static_cast<int>(nearbyintf(x)); }
inline int __float2int_rz(float x) { return static_cast<int>(x); }
inline int __float2int_rd(float x) { return static_cast<int>(floorf(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(unsigned x) { return static_cast<float>(x); }
inline unsigned __float_as_uint(float f) { return ::simt::bits_as<unsigned>(f); }
inline float __uint_as_float(unsigned u) { return ::simt::bits_as<float>(u); }
inline int __float_as_int(float f) { return ::simt::bits_as<int>(f); }
inline float __int_as_float(int i) { return ::simt::bits_as<float>(i); }
inline long long __double_as_longlong(double d) { return ::simt::bits_as<long long>(d); }
inline double __longlong_as_double(long long i) { return ::simt::bits_as<double>(i); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  return static_cast<unsigned long long>((static_cast<unsigned __int128>(a) * b) >> 64);
}
// Four products of signed bytes added to c.
inline int __dp4a(int a, int b, int c) {
  for (int i = 0; i < 4; ++i) c += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
  return c;
}
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = (uint64_t{y} << 32) | x;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i)
    result |= static_cast<unsigned>((bytes >> (8 * ((selector >> (4 * i)) & 7))) & 255) << (8 * i);
  return result;
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
