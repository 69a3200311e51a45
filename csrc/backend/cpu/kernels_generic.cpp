// Portable instantiation of kernels_body.h: eight-lane structs that the compiler vectorises as it can.
// Where the target has no fused multiply-add the product is rounded first: bits differ from AVX, not
// from run to run.
#include <cmath>
#include <cstring>

#include "backend/cpu/kernels.h"

namespace kdtw::cpu {
namespace {

constexpr int kWidth = 8;
constexpr int kFp32Rows = 2;  // most tokens whose sums stay in registers
constexpr int kBf16Rows = 2;
constexpr int kAccumulators = 8;  // of attention

struct V {
  float lane[kWidth];
};

template <typename Function>
inline V lanes(Function&& function) {
  V out;
  for (int i = 0; i < kWidth; ++i) out.lane[i] = function(i);
  return out;
}

inline V zero() { return V{}; }
inline V set1(float x) {
  return lanes([&](int) { return x; });
}
inline V load(const float* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, const V& v) { std::memcpy(p, &v, sizeof v); }
inline V add(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] + b.lane[i]; });
}
inline V sub(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] - b.lane[i]; });
}
inline V mul(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] * b.lane[i]; });
}
inline V div(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] / b.lane[i]; });
}
inline V fma(const V& a, const V& b, const V& c) {
#if defined(__FP_FAST_FMAF)
  return lanes([&](int i) { return __builtin_fmaf(a.lane[i], b.lane[i], c.lane[i]); });
#else
  return lanes([&](int i) { return a.lane[i] * b.lane[i] + c.lane[i]; });
#endif
}
inline V max(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline V min(const V& a, const V& b) {
  return lanes([&](int i) { return a.lane[i] < b.lane[i] ? a.lane[i] : b.lane[i]; });
}
inline V round_even(const V& a) {
  return lanes([&](int i) { return std::nearbyint(a.lane[i]); });
}
inline V scale_by_power(const V& a, const V& n) {
  return lanes([&](int i) {
    // What is not finite has no power; no result that comes of it is read.
    const int32_t bits = (static_cast<int32_t>(std::fmin(std::fmax(n.lane[i], -127.0f), 128.0f)) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return a.lane[i] * power;
  });
}
// The bf16 numbers in the low and in the high halves of 8 lanes, as fp32.
inline V low_halves(const V& a) {
  uint32_t bits[kWidth];
  std::memcpy(bits, &a, sizeof bits);
  for (uint32_t& lane : bits) lane <<= 16;
  V out;
  std::memcpy(&out, bits, sizeof out);
  return out;
}
inline V high_halves(const V& a) {
  uint32_t bits[kWidth];
  std::memcpy(bits, &a, sizeof bits);
  for (uint32_t& lane : bits) lane &= 0xffff0000u;
  V out;
  std::memcpy(&out, bits, sizeof out);
  return out;
}
// To the nearest integer, ties to even, which must fit in a byte.
inline void store_int8(uint8_t* p, const V& a) {
  for (int i = 0; i < kWidth; ++i) p[i] = static_cast<uint8_t>(static_cast<int8_t>(std::nearbyint(a.lane[i])));
}
inline float sum_lanes(V a) {
  for (int half = kWidth / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) a.lane[i] += a.lane[i + half];
  return a.lane[0];
}
inline float max_lanes(const V& a) {
  float best = a.lane[0];
  for (int i = 1; i < kWidth; ++i) best = a.lane[i] > best ? a.lane[i] : best;
  return best;
}
inline bool any_equal(const V& a, const V& b) {
  for (int i = 0; i < kWidth; ++i)
    if (a.lane[i] == b.lane[i]) return true;
  return false;
}
inline void prefetch(const std::byte*) {}

#include "backend/cpu/vector_body.h"

#include "backend/cpu/attention_body.h"
#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

struct I {
  int32_t lane[kWidth];
};
struct Quad {
  int8_t input[4];
};
struct Weights {
  int8_t lane[kWidth][4];
};
constexpr uint8_t kOffset = 0;
constexpr int kInt8Rows = 2;
inline I start(const int32_t*) { return I{}; }
inline Quad quad(const uint8_t* p) {
  Quad x;
  std::memcpy(&x, p, sizeof x);
  return x;
}
inline Weights load_weights(const float* p) {
  Weights w;
  std::memcpy(&w, p, sizeof w);
  return w;
}
inline I dot(I sum, const Quad& x, const Weights& w) {
  for (int i = 0; i < kWidth; ++i)
    for (int k = 0; k < 4; ++k) sum.lane[i] += x.input[k] * w.lane[i][k];
  return sum;
}
inline V to_float(const I& a) {
  return lanes([&](int i) { return static_cast<float>(a.lane[i]); });
}
#include "backend/cpu/gemm_int8_body.h"

constexpr Kernels kTable = table("generic", {int8_gemm<>, kInt8Rows}, kOffset);

}  // namespace

const Kernels& generic_kernels() { return kTable; }

}  // namespace kdtw::cpu
