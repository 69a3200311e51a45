// AVX2 + FMA instantiation of kernels_body.h; see kernels_avx512.cpp for why the pragma stands where it does.
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace kdtw::cpu {
namespace {

using V = __m256;
constexpr int kWidth = 8;
constexpr int kMaxRows = 3;
constexpr int kPrefetch = 24;  // panel rows ahead

inline V zero() { return _mm256_setzero_ps(); }
inline V set1(float x) { return _mm256_set1_ps(x); }
inline V load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, V v) { _mm256_storeu_ps(p, v); }
inline V add(V a, V b) { return _mm256_add_ps(a, b); }
inline V sub(V a, V b) { return _mm256_sub_ps(a, b); }
inline V mul(V a, V b) { return _mm256_mul_ps(a, b); }
inline V div(V a, V b) { return _mm256_div_ps(a, b); }
inline V fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
inline V max(V a, V b) { return _mm256_max_ps(a, b); }
inline V min(V a, V b) { return _mm256_min_ps(a, b); }
inline V round_even(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline V scale_by_power(V a, V n) {
  const __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_mul_ps(a, _mm256_castsi256_ps(exponent));
}
inline bool any_equal(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0; }
inline void prefetch(const float* p) { _mm_prefetch(reinterpret_cast<const char*>(p), _MM_HINT_T0); }

#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

constexpr Kernels kTable = table("avx2");

}  // namespace

const Kernels* avx2_kernels() { return &kTable; }

}  // namespace kdtw::cpu
#else
namespace kdtw::cpu {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace kdtw::cpu
#endif
