// CUDA's header of this name, on the simulated device: the same layout and rounding (to nearest even).
#pragma once

#include <immintrin.h>

#include "types.h"

struct __half {
  uint16_t bits;
  __half() = default;
  explicit __half(float value) : bits(static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))) {}
  explicit operator float() const { return _cvtsh_ss(bits); }
};
using half = __half;

inline __half __ushort_as_half(unsigned short bits) {
  __half h;
  h.bits = bits;
  return h;
}
inline unsigned short __half_as_ushort(__half h) { return h.bits; }
inline float __half2float(__half h) { return float(h); }
inline __half __float2half_rn(float f) { return __half(f); }
