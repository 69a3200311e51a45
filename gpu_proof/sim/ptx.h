// What C++ made of PTX (gpu_proof/translate.py) calls: PTX's instructions as functions. Registers hold bits; `as` and
// `put` give them the type an instruction reads or writes.
#pragma once

#include <limits>
#include <stdexcept>
#include <utility>
#include <vector>

#include "cuda_bf16.h"
#include "cuda_fp16.h"
#include "cuda_runtime.h"

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
// Announces a kernel, when the library is loaded.
inline bool know(const char* name, void (*run)(void** arguments), std::vector<std::pair<size_t, size_t>> shared) {
  if (translated_kernels().emplace(name, TranslatedKernel{run, std::move(shared)}).second) return true;
  throw std::runtime_error(std::string("two translated kernels are named ") + name);
}

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
// What a vector is loaded and stored as.
template <size_t kBytes>
using Bits = std::conditional_t<kBytes == 4, uint32_t, std::conditional_t<kBytes == 8, uint64_t, __m128i>>;
// One access of the whole vector, as the GPU makes it; at an address that is a multiple of its size.
template <typename V>
inline __attribute__((always_inline)) V load_vector(Site site, const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V)) trap(site, "misaligned vector load");
  return bits_as<V>(*static_cast<const Bits<sizeof(V)>*>(p));
}
template <typename V>
inline __attribute__((always_inline)) void store_vector(Site site, void* p, V value) {
  if (reinterpret_cast<uintptr_t>(p) % sizeof(V)) trap(site, "misaligned vector store");
  *static_cast<Bits<sizeof(V)>*>(p) = bits_as<Bits<sizeof(V)>>(value);
}
// ---------------------------------------------------------------- integers
template <typename T>
inline T divide(T a, T b) {
  return std::is_floating_point_v<T> || b ? a / b : static_cast<T>(-1);
}
template <typename T>
inline T remainder(T a, T b) {
  return b ? a % b : a;
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
// The shift that brings the highest bit to the top; all ones where there is none.
template <typename T>
inline uint32_t shift_to_top(T a) {
  return a ? leading_zeros(a) : ~0u;
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
// ---------------------------------------------------------------- floats
// Rounded down. The product is exact in double, and a float's neighbour is far from what its sum can lose there.
inline float fma_down(float a, float b, float c) {
  const float nearest = std::fma(a, b, c);
  return static_cast<double>(nearest) > static_cast<double>(a) * b + c ? std::nextafter(nearest, -INFINITY) : nearest;
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
  bool inside;  // whether there is the lane that it would read; if not, it reads itself
};
// clamp: the last lane (the first, of `up`), and which lanes are a segment; here always the whole warp.
inline Shuffled shuffle_bits(Site site, WarpOp op, uint32_t value, uint32_t argument, uint32_t clamp, uint32_t mask) {
  if (clamp != (op == WarpOp::kUp ? 0 : 31)) trap(site, "shuffle within a part of the warp");
  const uint64_t bits = warp_collective(site, op, mask, value, static_cast<int>(argument));
  return {static_cast<uint32_t>(bits), op != WarpOp::kUp || argument <= lane()};
}

}  // namespace simt::ptx
