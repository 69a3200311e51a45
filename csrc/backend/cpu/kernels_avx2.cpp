// AVX2 + FMA instantiation of kernels_body.h; see kernels_avx512.cpp for why the pragma stands where it does.
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC target("avx2,fma")

namespace kdtw::cpu {
namespace {

using V = __m256;
constexpr int kWidth = 8;
constexpr int kFp32Rows = 3;  // most tokens whose sums stay in registers
constexpr int kBf16Rows = 2;
constexpr int kAccumulators = 12;  // of attention

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
// The bf16 numbers in the low and in the high halves of 8 lanes, as fp32.
inline V low_halves(V a) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 16)); }
inline V high_halves(V a) {
  return _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(-65536)));
}
// To the nearest integer, ties to even, which must fit in a byte.
inline void store_int8(uint8_t* p, V a) {
  const __m256i whole = _mm256_cvtps_epi32(a);
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(words, words));
}
inline float sum_lanes(V a) {  // i + 4, then i + 2, i + 1
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float max_lanes(V a) {
  __m128 top = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  top = _mm_max_ps(top, _mm_movehl_ps(top, top));
  return _mm_cvtss_f32(_mm_max_ss(top, _mm_movehdup_ps(top)));
}
inline bool any_equal(V a, V b) { return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ)) != 0; }
// Not _mm_prefetch: GCC thinks that a function which only prefetches has no effect, and drops its calls.
inline void prefetch(const std::byte* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

#include "backend/cpu/vector_body.h"

#include "backend/cpu/attention_body.h"
#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

// Sums are vectors of ints to GCC too: as __m256i, which is one of long longs, they would not stay in registers.
using I = __v8si;
using Bytes = __m256i;
inline Bytes load_weights(const float* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
inline V to_float(I a) { return _mm256_cvtepi32_ps((__m256i)a); }
inline Bytes four_bytes(const uint8_t* p) {
  int four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm256_set1_epi32(four);
}

// Pairs of products in 16 bits: 2 * 127 * 127 fits, because the first factor is |x| and x's sign goes to the weight.
namespace pairs {
constexpr uint8_t kOffset = 0;
constexpr int kInt8Rows = 2;
struct Quad {
  Bytes magnitude, sign;
};
inline I start(const int32_t*) { return I{}; }
inline Quad quad(const uint8_t* p) {
  const Bytes four = four_bytes(p);
  return {_mm256_abs_epi8(four), four};
}
inline I dot(I sum, const Quad& x, Bytes weights) {
  const Bytes products = _mm256_maddubs_epi16(x.magnitude, _mm256_sign_epi8(weights, x.sign));
  return sum + (I)_mm256_madd_epi16(products, _mm256_set1_epi16(1));
}
#include "backend/cpu/gemm_int8_body.h"
}  // namespace pairs

constexpr Kernels kTable = table("avx2", {pairs::int8_gemm<>, pairs::kInt8Rows}, pairs::kOffset);

#pragma GCC target("avxvnni")

// See the same in kernels_avx512.cpp.
namespace vnni {
constexpr uint8_t kOffset = 128;
constexpr int kInt8Rows = 3;
using Quad = Bytes;
inline I start(const int32_t* sums) { return -128 * (I)_mm256_loadu_si256(reinterpret_cast<const __m256i*>(sums)); }
inline Quad quad(const uint8_t* p) { return four_bytes(p); }
inline I dot(I sum, Quad x, Bytes weights) { return (I)_mm256_dpbusd_avx_epi32((__m256i)sum, x, weights); }
#include "backend/cpu/gemm_int8_body.h"
}  // namespace vnni

constexpr Kernels kVnniTable = table("avx2_vnni", {vnni::int8_gemm<>, vnni::kInt8Rows}, vnni::kOffset);

}  // namespace

const Kernels* avx2_kernels() { return &kTable; }
const Kernels* avx2_vnni_kernels() { return &kVnniTable; }

}  // namespace kdtw::cpu
#else
namespace kdtw::cpu {
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx2_vnni_kernels() { return nullptr; }
}  // namespace kdtw::cpu
#endif
