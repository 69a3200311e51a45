// What C++ made of PTX (gpu_proof/translate.py) calls: PTX's instructions as functions. Registers hold bits; `as` and
// `put` give them the type an instruction reads or writes.
#pragma once

#include <limits>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"
#include "translated.h"

namespace simt::ptx {

template <typename T, typename U>
inline T as(U value) {
  if constexpr (std::is_same_v<T, U>)
    return value;
  else if constexpr (sizeof(T) == sizeof(U) && !std::is_same_v<T, bool> && !std::is_same_v<U, bool>)
    return bits_as<T>(value);
  else
    return static_cast<T>(value);
}
template <typename Register, typename Value>
inline void put(Register& to, Value value) {
  to = as<Register>(value);
}
inline float f32_bits(uint32_t bits) { return bits_as<float>(bits); }
inline double f64_bits(uint64_t bits) { return bits_as<double>(bits); }

// ---------------------------------------------------------------- memory
template <typename T>
inline __attribute__((always_inline)) T load(const void* p) {
  return *static_cast<const T*>(p);
}
template <typename T>
inline __attribute__((always_inline)) void store(void* p, T value) {
  *static_cast<T*>(p) = value;
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T values[kCount];
};
template <size_t kBytes>
struct Bits;
template <>
struct Bits<2> {
  using Type = uint16_t;
};
template <>
struct Bits<4> {
  using Type = uint32_t;
};
template <>
struct Bits<8> {
  using Type = uint64_t;
};
template <>
struct Bits<16> {
  using Type = __m128i;
};
// One access of the whole vector, as the GPU makes it; at an address that is a multiple of its size.
template <typename V>
inline __attribute__((always_inline)) V load_vector(Site site, const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V)) trap(site, "misaligned vector load");
  return bits_as<V>(*static_cast<const typename Bits<sizeof(V)>::Type*>(p));
}
template <typename V>
inline __attribute__((always_inline)) void store_vector(Site site, void* p, V value) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V)) trap(site, "misaligned vector store");
  *static_cast<typename Bits<sizeof(V)>::Type*>(p) = bits_as<typename Bits<sizeof(V)>::Type>(value);
}
// ---------------------------------------------------------------- integers
template <typename T>
inline T divide(T a, T b) {
  return b ? a / b : static_cast<T>(-1);
}
template <typename T>
inline T remainder(T a, T b) {
  return b ? a % b : a;
}
template <typename T>
inline T absolute(T a) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fabs(a);
  else
    return a < 0 ? static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a)) : a;
}
// Shifts by the width or more clear, or fill with the sign.
template <typename T>
inline T shift_left(T a, uint32_t n) {
  return n >= 8 * sizeof(T) ? T{0} : static_cast<T>(a << n);
}
template <typename T>
inline T shift_right(T a, uint32_t n) {
  if (n >= 8 * sizeof(T)) return std::is_signed_v<T> && a < 0 ? static_cast<T>(-1) : T{0};
  return static_cast<T>(a >> n);
}
template <typename T>
inline uint32_t leading_zeros(T a) {
  return a ? static_cast<uint32_t>(__builtin_clzll(a)) - (64 - 8 * sizeof(T)) : 8 * sizeof(T);
}
// The highest bit that differs from the sign, or the shift that brings it to the top; all ones when there is none.
template <typename T>
inline uint32_t highest_bit(T a, bool as_shift) {
  const auto bits = static_cast<std::make_unsigned_t<T>>(a < 0 ? ~a : a);
  if (!bits) return ~0u;
  return as_shift ? leading_zeros(bits) : static_cast<uint32_t>(8 * sizeof(T) - 1) - leading_zeros(bits);
}
template <typename T>
inline T reversed(T a) {
  T out = 0;
  for (size_t i = 0; i < 8 * sizeof(T); ++i) out |= static_cast<T>((a >> i & 1) << (8 * sizeof(T) - 1 - i));
  return out;
}
// The low `count` bits of `a`, put into `into` from bit `at` on.
template <typename T>
inline T bits_inserted(T a, T into, uint32_t at, uint32_t count) {
  at &= 255, count &= 255;
  if (at >= 8 * sizeof(T)) return into;
  const T mask = count >= 8 * sizeof(T) ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << count) - 1);
  return static_cast<T>((into & ~(mask << at)) | (a & mask) << at);
}
inline uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
  return static_cast<uint32_t>(__dp4a(static_cast<int>(a), static_cast<int>(b), static_cast<int>(c)));
}

// ---------------------------------------------------------------- floats
template <typename T>
inline T minimum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmin(a, b);
  else
    return a < b ? a : b;
}
template <typename T>
inline T maximum(T a, T b) {
  if constexpr (std::is_floating_point_v<T>)
    return std::fmax(a, b);
  else
    return a > b ? a : b;
}
template <typename T>
inline T round_rzi(T x) {
  return std::trunc(x);
}
template <typename T>
inline T round_rni(T x) {
  return std::nearbyint(x);
}
template <typename T>
inline T saturated(T x) {
  return x > 0 ? (x < 1 ? x : T{1}) : T{0};
}
template <typename T, typename F>
inline T float_to_int(F x) {  // saturates; 0 of NaN
  if (x != x) return 0;
  const auto wide = static_cast<long double>(x);
  if (wide <= static_cast<long double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (wide >= static_cast<long double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(x);
}
inline float f16_to_float(uint16_t bits) { return float(__ushort_as_half(bits)); }
inline float bf16_to_float(uint16_t bits) { return float(__ushort_as_bfloat16(bits)); }
inline uint16_t convert_to_f16(float x) { return __half(x).bits; }
inline uint16_t convert_to_bf16(float x) { return __nv_bfloat16(x).bits; }

// ---------------------------------------------------------------- shuffles
struct Shuffled {
  uint32_t value;
  bool inside;  // whether the lane it would read lies in its segment; if not, it reads itself
};
// clamp: bits 8-12 the mask of the segment's lanes, bits 0-4 the last lane (the first, of `up`).
inline Shuffled shuffle_bits(Site site, WarpOp op, uint32_t mask, uint32_t value, uint32_t argument, uint32_t clamp) {
  const int width = 32 - static_cast<int>(clamp >> 8 & 31), lane = static_cast<int>(simt::lane());
  const int first = lane & ~(width - 1), distance = static_cast<int>(argument & 31);
  int source = lane ^ distance;
  if (op == WarpOp::kUp) source = lane - distance;
  if (op == WarpOp::kDown) source = lane + distance;
  if (op == WarpOp::kIndex) source = first | (distance & (width - 1));
  const bool inside = op == WarpOp::kUp ? source >= first : source < first + width;
  const uint64_t bits = warp_collective(site, op, mask, value, distance, width);
  return {static_cast<uint32_t>(bits), inside};
}

}  // namespace simt::ptx
