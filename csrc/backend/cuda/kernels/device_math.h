// What kernels share: sums and maxima in one fixed order, number formats, and a launch's grid.
#pragma once

#include <float.h>

#include "backend/cuda/kernels.h"
#include "backend/cuda/rt.h"

namespace kdtw::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;
constexpr int kBlock = 256;  // threads
constexpr int kWarps = kBlock / kWarp;

__device__ __forceinline__ int warp_id() { return static_cast<int>(threadIdx.x) / kWarp; }
__device__ __forceinline__ int lane_id() { return static_cast<int>(threadIdx.x) % kWarp; }

struct Sum {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Largest {
  template <typename T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a > b ? a : b;
  }
};

// The warp's result, for every lane. Lanes meet over the distances 16, 8, 4, 2, 1: one fixed tree, so a sum has one
// value.
template <typename Op, typename T>
__device__ __forceinline__ T warp_reduce(T value, Op op = {}) {
#pragma unroll
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value = op(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

// Every thread gets the result of its block of kBlock threads: warps first, then the warps in ascending order.
// scratch: [kWarps], in use until the next barrier.
template <typename Op, typename T>
__device__ __forceinline__ T block_reduce(T value, T* scratch, Op op = {}) {
  value = warp_reduce<Op>(value);
  __syncthreads();
  if (lane_id() == 0) scratch[warp_id()] = value;
  __syncthreads();
  T all = scratch[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) all = op(all, scratch[w]);
  return all;
}

// Number formats of weights and caches. Kernels load 16 bytes at a time: kEach elements, which `expand` turns into
// fp32.
struct Fp32 {
  using Type = float;
  static constexpr int kEach = 4;
  static __device__ __forceinline__ void expand(uint4 bits, float (&to)[kEach]) {
    to[0] = __uint_as_float(bits.x), to[1] = __uint_as_float(bits.y);
    to[2] = __uint_as_float(bits.z), to[3] = __uint_as_float(bits.w);
  }
  static __device__ __forceinline__ float one(Type value) { return value; }
  static __device__ __forceinline__ Type round(float value) { return value; }
};

struct Fp16 {
  using Type = unsigned short;
  static constexpr int kEach = 8;
  static __device__ __forceinline__ float one(Type value) { return __half2float(__ushort_as_half(value)); }
  static __device__ __forceinline__ Type round(float value) { return __half_as_ushort(__float2half_rn(value)); }
  static __device__ __forceinline__ void expand(uint4 bits, float (&to)[kEach]) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = one(static_cast<Type>(words[i] & 0xffffu));
      to[2 * i + 1] = one(static_cast<Type>(words[i] >> 16));
    }
  }
};

struct Bf16 {
  using Type = unsigned short;
  static constexpr int kEach = 8;
  static __device__ __forceinline__ float one(Type value) {
    return __uint_as_float(static_cast<unsigned>(value) << 16);
  }
  static __device__ __forceinline__ Type round(float value) { return __bfloat16_as_ushort(__float2bfloat16_rn(value)); }
  static __device__ __forceinline__ void expand(uint4 bits, float (&to)[kEach]) {
    const unsigned words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      to[2 * i] = __uint_as_float(words[i] << 16);
      to[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
    }
  }
};

struct Int8 {
  using Type = int8_t;
  static __device__ __forceinline__ float one(Type value) { return static_cast<float>(value); }
};

// Calls `launch` with the format of numbers that stand for themselves; int8 and scaled fp16 are errors.
template <typename Launch>
int32_t with_format(KdtwFormat format, Launch&& launch) {
  if (format == kKdtwFp32)
    launch(Fp32{});
  else if (format == kKdtwFp16)
    launch(Fp16{});
  else if (format == kKdtwBf16)
    launch(Bf16{});
  else
    return cudaErrorInvalidValue;
  return cudaGetLastError();
}

__device__ __forceinline__ bool is_finite(float value) { return fabsf(value) <= FLT_MAX; }

// T5's GELU ("gelu_new"): x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), written as x / (1 + exp(-2u)),
// which needs one exponential. The exponent is capped at 88, just below where expf overflows.
__device__ __forceinline__ float gelu(float x) {
  const float cubic = fmaf(x * x * x, 0.044715f, x);
  return x / (1.0f + expf(fminf(cubic * -1.5957691216057308f, 88.0f)));
}

inline int ceil_divide(int value, int by) { return (value + by - 1) / by; }

// The error that a function of the table returns. CUDA keeps an error until cudaGetLastError takes it, so it is taken
// here: else the check after the next launch would find it again and blame that launch.
inline int32_t told(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace kdtw::cuda
