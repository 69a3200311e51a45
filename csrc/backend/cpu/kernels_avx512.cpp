// AVX-512 instantiation of kernels_body.h. Only this file's own functions are compiled for AVX-512: the
// pragma comes after every include, so no shared inline function can carry its instructions elsewhere.
#include "backend/cpu/kernels.h"

#if defined(__x86_64__)
#include <immintrin.h>
#pragma GCC diagnostic ignored "-Wuninitialized"  // GCC 12's own _mm512_undefined_ps and its like
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")

namespace kdtw::cpu {
namespace {

using V = __m512;
constexpr int kWidth = 16;
constexpr int kFp32Rows = 14;  // most tokens whose sums stay in registers
constexpr int kBf16Rows = 13;
constexpr int kAccumulators = 24;  // of attention

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
// The bf16 numbers in the low and in the high halves of 16 lanes, as fp32.
inline V low_halves(V a) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 16)); }
inline V high_halves(V a) {
  return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(a), _mm512_set1_epi32(-65536)));
}
// To the nearest integer, ties to even, which must fit in a byte.
inline void store_int8(uint8_t* p, V a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a)));
}
inline float sum_lanes(V a) { return _mm512_reduce_add_ps(a); }  // i + 8, then i + 4, i + 2, i + 1
inline float max_lanes(V a) { return _mm512_reduce_max_ps(a); }
inline bool any_equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ) != 0; }
// Not _mm_prefetch: GCC thinks that a function which only prefetches has no effect, and drops its calls.
inline void prefetch(const std::byte* p) { asm volatile("prefetcht0 %0" : : "m"(*p)); }

#include "backend/cpu/vector_body.h"

#include "backend/cpu/attention_body.h"
#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

// Sums are vectors of ints to GCC too: as __m512i, which is one of long longs, they would not stay in registers.
using I = __v16si;
using Bytes = __m512i;
inline Bytes load_weights(const float* p) { return _mm512_loadu_si512(p); }
inline V to_float(I a) { return _mm512_cvtepi32_ps((__m512i)a); }
inline Bytes four_bytes(const uint8_t* p) {
  int four;
  __builtin_memcpy(&four, p, sizeof four);
  return _mm512_set1_epi32(four);
}

// Pairs of products in 16 bits: 2 * 127 * 127 fits, because the first factor is |x| and x's sign goes to the weight.
namespace pairs {
constexpr uint8_t kOffset = 0;
constexpr int kInt8Rows = 12;
struct Quad {
  Bytes magnitude;
  __mmask64 negative;
};
inline I start(const int32_t*) { return I{}; }
inline Quad quad(const uint8_t* p) {
  const Bytes four = four_bytes(p);
  return {_mm512_abs_epi8(four), _mm512_movepi8_mask(four)};
}
inline I dot(I sum, const Quad& x, Bytes weights) {
  const Bytes signed_weights = _mm512_mask_sub_epi8(weights, x.negative, _mm512_setzero_si512(), weights);
  const Bytes products = _mm512_maddubs_epi16(x.magnitude, signed_weights);
  return sum + (I)_mm512_madd_epi16(products, _mm512_set1_epi16(1));
}
#include "backend/cpu/gemm_int8_body.h"
}  // namespace pairs

constexpr Kernels kTable = table("avx512", {pairs::int8_gemm<>, pairs::kInt8Rows}, pairs::kOffset);

#pragma GCC target("avx512vnni")

// vpdpbusd multiplies unsigned tokens x + 128: what is too much is known from the sums of the weights.
namespace vnni {
constexpr uint8_t kOffset = 128;
constexpr int kInt8Rows = 14;
using Quad = Bytes;
inline I start(const int32_t* sums) { return -128 * (I)_mm512_loadu_si512(sums); }
inline Quad quad(const uint8_t* p) { return four_bytes(p); }
inline I dot(I sum, Quad x, Bytes weights) { return (I)_mm512_dpbusd_epi32((__m512i)sum, x, weights); }
#include "backend/cpu/gemm_int8_body.h"
}  // namespace vnni

constexpr Kernels kVnniTable = table("avx512_vnni", {vnni::int8_gemm<>, vnni::kInt8Rows}, vnni::kOffset);

#pragma GCC target("amx-tile,amx-int8")

// Tile registers: 16 tokens x kChunk inputs times kChunk inputs x 16 outputs in one instruction. Few tokens, which
// leave tiles half empty and wait for memory anyway, go to vnni; the operands are the same.
namespace amx {
constexpr int kInt8Rows = 32;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// Tiles 4 and 5 hold the two halves of the tokens, 6 and 7 the two halves of the panel, 0 to 3 their sums.
TileConfig configure(int upper, int lower) {
  TileConfig config;
  const int rows[8] = {upper, upper, lower, lower, upper, lower, kChunk / 4, kChunk / 4};
  for (int tile = 0; tile < 8; ++tile) {
    config.rows[tile] = static_cast<uint8_t>(rows[tile]);
    config.row_bytes[tile] = kChunk;
  }
  return config;
}

void multiply_panel(const Product& product, int panel, int upper, int32_t (&sums)[kInt8Rows][kPanel]) {
  const int chunks = (product.inputs + kChunk - 1) / kChunk;
  const auto* x = static_cast<const uint8_t*>(product.x);
  const std::byte* weights = product.panels + panel * product.panel_bytes;
  Prefetcher<1> prefetcher(product, panel, chunks * (kChunk / 4));
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int chunk = 0; chunk < chunks; ++chunk, x += product.rows * kChunk, weights += kChunk / 4 * kPanelRow) {
    for (int i = 0; i < kChunk / 4; ++i) prefetcher.step();
    _tile_loadd(4, x, kChunk);
    _tile_loadd(5, x + upper * kChunk, kChunk);
    _tile_loadd(6, weights, kPanelRow);
    _tile_loadd(7, weights + kPanelRow / 2, kPanelRow);
    _tile_dpbusd(0, 4, 6);
    _tile_dpbusd(1, 4, 7);
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
  constexpr int kStride = sizeof sums[0];
  _tile_stored(0, &sums[0][0], kStride);
  _tile_stored(1, &sums[0][kPanel / 2], kStride);
  _tile_stored(2, &sums[upper][0], kStride);
  _tile_stored(3, &sums[upper][kPanel / 2], kStride);
}

void int8_gemm(const Product& product) {
  if (product.rows <= vnni::kInt8Rows) return vnni::int8_gemm<>(product);
  const int upper = (product.rows + 1) / 2;
  const TileConfig config = configure(upper, product.rows - upper);
  asm volatile("ldtilecfg %0" : : "m"(config));  // GCC's intrinsic lets the stores to `config` be dropped
  alignas(64) int32_t sums[kInt8Rows][kPanel];
  for (int p = 0; p < product.count; ++p) {
    multiply_panel(product, p, upper, sums);
    const auto* correction = reinterpret_cast<const int32_t*>(vnni::scales_of(product, p) + kPanel);
    for (int r = 0; r < product.rows; ++r) {
      I line[kVectors];
      for (int v = 0; v < kVectors; ++v)
        line[v] = (I)_mm512_load_si512(&sums[r][v * kWidth]) + vnni::start(correction + v * kWidth);
      vnni::write_scaled(line, product, p, r);
    }
  }
  _tile_release();  // leaves no tiles to be saved at every switch of threads
}
}  // namespace amx

constexpr Kernels kAmxTable = table("amx", {amx::int8_gemm, amx::kInt8Rows}, vnni::kOffset);

}  // namespace

const Kernels* avx512_kernels() { return &kTable; }
const Kernels* avx512_vnni_kernels() { return &kVnniTable; }
const Kernels* amx_kernels() { return &kAmxTable; }

}  // namespace kdtw::cpu
#else
namespace kdtw::cpu {
const Kernels* avx512_kernels() { return nullptr; }
const Kernels* avx512_vnni_kernels() { return nullptr; }
const Kernels* amx_kernels() { return nullptr; }
}  // namespace kdtw::cpu
#endif
