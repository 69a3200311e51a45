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
// Volatile, relaxed and stronger: other threads may run before it, so that loops which wait for a value end.
template <typename T>
inline __attribute__((no_sanitize("thread"))) T load_atomic(const void* p) {
  yield();
  atomic_access(const_cast<void*>(p), sizeof(T));
  return *static_cast<const volatile T*>(p);
}
template <typename T>
inline __attribute__((no_sanitize("thread"))) void store_atomic(void* p, T value) {
  atomic_access(p, sizeof(T));
  *static_cast<volatile T*>(p) = value;
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
template <typename T>
inline T high_product(T a, T b) {
  using Wide = std::conditional_t<std::is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>((static_cast<Wide>(a) * b) >> (8 * sizeof(T)));
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
template <typename T>
inline T low_mask(uint32_t bits) {
  return bits >= 8 * sizeof(T) ? static_cast<T>(~T{0}) : static_cast<T>((T{1} << bits) - 1);
}
template <typename T>
inline T bits_inserted(T a, T into, uint32_t at, uint32_t count) {
  at &= 255, count &= 255;
  if (at >= 8 * sizeof(T)) return into;
  const T mask = low_mask<T>(count);
  return static_cast<T>((into & ~(mask << at)) | (a & mask) << at);
}
template <typename T>
inline T bits_extracted(T a, uint32_t at, uint32_t count) {
  at &= 255, count &= 255;
  using U = std::make_unsigned_t<T>;
  if (!count) return 0;
  constexpr uint32_t kWidth = 8 * sizeof(T);
  U bits = at >= kWidth ? U{0} : static_cast<U>(static_cast<U>(a) >> at);
  const U mask = low_mask<U>(count);
  bits &= mask;
  const uint32_t top = std::min(at + count - 1, kWidth - 1);  // whose bit fills what lies above
  if (std::is_signed_v<T> && (static_cast<U>(a) >> top & 1))
    bits |= static_cast<U>(~mask | (at + count > kWidth ? ~low_mask<U>(kWidth - std::min(at, kWidth)) : U{0}));
  return static_cast<T>(bits);
}
inline uint32_t bytes_permuted(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t out = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t choice = selector >> (4 * i) & 15;
    auto byte = static_cast<uint8_t>(bytes >> (8 * (choice & 7)));
    if (choice & 8) byte = byte & 128 ? 255 : 0;
    out |= uint32_t{byte} << (8 * i);
  }
  return out;
}
inline uint32_t three_input_logic(uint32_t a, uint32_t b, uint32_t c, uint32_t table) {
  uint32_t out = 0;
  for (int i = 0; i < 8; ++i) {
    if (table >> i & 1) out |= (i & 4 ? a : ~a) & (i & 2 ? b : ~b) & (i & 1 ? c : ~c);
  }
  return out;
}
inline uint32_t funnel_shift(uint32_t low, uint32_t high, uint32_t n, int left, int wrap) {
  n = wrap ? n & 31 : std::min(n, 32u);
  const uint64_t both = uint64_t{high} << 32 | low;
  return static_cast<uint32_t>(left ? both >> (32 - n) : both >> n);
}
template <bool kSignedA, bool kSignedB>
inline uint32_t dot_bytes(uint32_t a, uint32_t b, uint32_t c) {
  const auto byte = [](uint32_t x, int i, bool is_signed) {
    const auto value = static_cast<uint8_t>(x >> (8 * i));
    return is_signed ? int{static_cast<int8_t>(value)} : int{value};
  };
  for (int i = 0; i < 4; ++i) c += static_cast<uint32_t>(byte(a, i, kSignedA) * byte(b, i, kSignedB));
  return c;
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
inline T minimum_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : minimum(a, b);
}
template <typename T>
inline T maximum_nan(T a, T b) {
  return a != a || b != b ? std::numeric_limits<T>::quiet_NaN() : maximum(a, b);
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
inline T round_rmi(T x) {
  return std::floor(x);
}
template <typename T>
inline T round_rpi(T x) {
  return std::ceil(x);
}
template <typename T>
inline T saturated(T x) {
  return x > 0 ? (x < 1 ? x : T{1}) : T{0};
}
inline float reciprocal_root(float x) { return 1.0f / std::sqrt(x); }
inline double reciprocal_root(double x) { return 1.0 / std::sqrt(x); }
template <typename T, typename F>
inline T float_to_int(F x) {  // saturates; 0 of NaN
  if (x != x) return 0;
  const auto wide = static_cast<long double>(x);
  if (wide <= static_cast<long double>(std::numeric_limits<T>::min())) return std::numeric_limits<T>::min();
  if (wide >= static_cast<long double>(std::numeric_limits<T>::max())) return std::numeric_limits<T>::max();
  return static_cast<T>(x);
}
template <typename T, typename F>
inline T saturated_int(F x) {
  if (x < static_cast<F>(0) && !std::is_signed_v<T>) return 0;
  const __int128 wide = x;
  if (wide < std::numeric_limits<T>::min()) return std::numeric_limits<T>::min();
  return wide > std::numeric_limits<T>::max() ? std::numeric_limits<T>::max() : static_cast<T>(x);
}

inline float f16_to_float(uint16_t bits) { return float(__ushort_as_half(bits)); }
inline float bf16_to_float(uint16_t bits) { return float(__ushort_as_bfloat16(bits)); }
inline uint16_t convert_to_f16(float x, bool toward_zero) {
  return static_cast<uint16_t>(toward_zero ? _cvtss_sh(x, _MM_FROUND_TO_ZERO)
                                           : _cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
}
inline uint16_t convert_to_bf16(float x, bool toward_zero) {
  return toward_zero && x == x ? static_cast<uint16_t>(bits_as<uint32_t>(x) >> 16) : __nv_bfloat16(x).bits;
}
// Arithmetic on halves: in double, rounded once to float and once to the half. (Float has more than twice a half's
// digits, so that the second rounding changes nothing for sums and products.)
inline double op_add(double a, double b) { return a + b; }
inline double op_sub(double a, double b) { return a - b; }
inline double op_mul(double a, double b) { return a * b; }
inline double op_fma(double a, double b, double c) { return a * b + c; }
inline double op_min(double a, double b) { return std::fmin(a, b); }
inline double op_max(double a, double b) { return std::fmax(a, b); }
inline double op_neg(double a) { return -a; }
inline double op_abs(double a) { return std::fabs(a); }
template <typename F, typename... A>
inline uint16_t f16_op(F op, A... a) {
  return convert_to_f16(static_cast<float>(op(double{f16_to_float(a)}...)), false);
}
template <typename F, typename... A>
inline uint16_t bf16_op(F op, A... a) {
  return convert_to_bf16(static_cast<float>(op(double{bf16_to_float(a)}...)), false);
}
template <typename F, typename... A>
inline uint32_t f16x2_op(F op, A... a) {
  return f16_op(op, static_cast<uint16_t>(a)...) | uint32_t{f16_op(op, static_cast<uint16_t>(a >> 16)...)} << 16;
}
template <typename F, typename... A>
inline uint32_t bf16x2_op(F op, A... a) {
  return bf16_op(op, static_cast<uint16_t>(a)...) | uint32_t{bf16_op(op, static_cast<uint16_t>(a >> 16)...)} << 16;
}

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
