// AVX-512 instantiation of kernels_body.h. Only this file's own functions are compiled for AVX-512: the
// pragma comes after every include, so no shared inline function can carry its instructions elsewhere.
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // GCC 12's own _mm512_undefined_ps
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace kdtw::cpu {
namespace {

using V = __m512;
constexpr int kWidth = 16;
constexpr int kMaxRows = 14;
constexpr int kPrefetch = 24;  // panel rows ahead

inline V zero() { return _mm512_setzero_ps(); }
inline V set1(float x) { return _mm512_set1_ps(x); }
inline V load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, V v) { _mm512_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm512_add_ps(a, b); }
inline V sub(V a, V b) { return _mm512_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm512_mul_ps(a, b); }
inline V div(V a, V b) { return _mm512_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm512_max_ps(a, b); }
inline V min(V a, V b) { return _mm512_min_ps(a, b); }
inline V round_even(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V scale_by_power(V a, V n) { return _mm512_scalef_ps(a, n); }
inline bool any_equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
inline void prefetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

constexpr Kernels kTable = table("avx512");

}  // namespace

const Kernels* avx512_kernels() { return &kTable; }

}  // namespace kdtw::cpu
#else
namespace kdtw::cpu {
const Kernels* avx512_kernels() { return nullptr; }
}  // namespace kdtw::cpu
#endif
