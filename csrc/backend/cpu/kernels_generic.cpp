// Portable instantiation of kernels_body.h: eight-lane structs that the compiler vectorises as it can.
// Where the target has no fused multiply-add the product is rounded first: bits differ from AVX, not
// from run to run.
#include <cmath>
#include <cstring>

#include "backend/cpu/kernels.h"

namespace kdtw::cpu {
namespace {

constexpr int kWidth = 8;
constexpr int kMaxRows = 2;
constexpr int kPrefetch = 0;

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
    const int32_t bits = (static_cast<int32_t>(n.lane[i]) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return a.lane[i] * power;
  });
}
inline bool any_equal(const V& a, const V& b) {
  for (int i = 0; i < kWidth; ++i)
    if (a.lane[i] == b.lane[i]) return true;
  return false;
}
inline void prefetch(const float*) {}

#include "backend/cpu/gemm_body.h"
#include "backend/cpu/kernels_body.h"

constexpr Kernels kTable = table("generic");

}  // namespace

const Kernels& generic_kernels() { return kTable; }

}  // namespace kdtw::cpu
