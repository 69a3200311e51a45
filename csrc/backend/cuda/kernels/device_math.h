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

// cap tanh(x / cap), as cap (1 - 2 / (exp(2x / cap) + 1)); NaN of NaN. Exponents are capped at 88, just below where
// expf overflows.
__device__ __forceinline__ float soft_cap(float x, float cap) {
  const float doubled = x * (2.0f / cap);
  return cap - 2.0f * cap / (expf(doubled > 88.0f ? 88.0f : doubled) + 1.0f);
}

// The tanh form of GELU, T5's "gelu_new": x/2 (1 + tanh(u)) with u = sqrt(2/pi) (x + 0.044715 x^3), written as
// x / (1 + exp(-2u)), which needs one exponential.
__device__ __forceinline__ float gelu_tanh(float x) {
  const float cubic = fmaf(x * x * x, 0.044715f, x);
  return x / (1.0f + expf(fminf(cubic * -1.5957691216057308f, 88.0f)));
}

// max(x, 0) - |x| q with q = (1 - erf(|x| / sqrt(2))) / 2, to about 1e-7 (Abramowitz and Stegun 1964, 7.1.26).
__device__ __forceinline__ float gelu(float x) {
  const float size = fabsf(x), z = size * 0.70710678f, t = 1.0f / fmaf(z, 0.3275911f, 1.0f);
  float p = fmaf(t, 1.061405429f, -1.453152027f);
  p = fmaf(t, p, 1.421413741f), p = fmaf(t, p, -0.284496736f), p = fmaf(t, p, 0.254829592f);
  return fmaxf(x, 0.0f) - size * (0.5f * p * t * expf(-z * z));
}

__device__ __forceinline__ float apply(Function function, float x) {
  switch (function) {
    case Function::kRelu:
      return fmaxf(x, 0.0f);
    case Function::kGelu:
      return gelu(x);
    case Function::kGeluTanh:
      return gelu_tanh(x);
    default:  // kSilu
      return x / (1.0f + expf(fminf(-x, 88.0f)));
  }
}

// How a product with a weight ends (KdtwWeight, KdtwEnding).
struct Ending {
  KdtwEpilogue epilogue;
  Function function;
  const float* bias;
  float cap;

  Ending(const KdtwWeight& weight, const KdtwEnding& ending)
      : epilogue(ending.epilogue), function(ending.function), bias(weight.bias), cap(weight.cap) {}

  // Output n of x W^T = y.
  __device__ __forceinline__ float output(float y, int n) const {
    if (bias != nullptr) y += bias[n];
    return cap > 0.0f ? soft_cap(y, cap) : y;
  }
  // What an output becomes that is not gated; `before` is what stands there, and only looked at where it is added to.
  __device__ __forceinline__ float alone(float output, float before) const {
    if (epilogue == kKdtwAdd) return before + output;
    return epilogue == kKdtwActivate ? apply(function, output) : output;
  }
  __device__ __forceinline__ float gated(float gate, float x) const { return apply(function, gate) * x; }
};

// What a token's norm needs of the whole token: 1 / rms(x), or the mean and 1 / deviation.
struct Moments {
  float mean, inverse;

  __device__ __forceinline__ float normed(const Norm& norm, float x, int k) const {
    const float scaled = (x - mean) * inverse * norm.scale[k];
    return norm.shift != nullptr ? scaled + norm.shift[k] : scaled;
  }
};

// Thread i adds x[i], x[i + kBlock], ... in this order, wherever in the library a norm is computed.
__device__ __forceinline__ Moments moments(const float* x, int size, const Norm& norm, float* scratch) {
  float mean = 0.0f, squares = 0.0f;
  if (norm.centred) {
    float sum = 0.0f;
    for (int k = threadIdx.x; k < size; k += kBlock) sum += x[k];
    mean = block_reduce<Sum>(sum, scratch) / static_cast<float>(size);
  }
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float apart = x[k] - mean;
    squares = fmaf(apart, apart, squares);
  }
  return {mean, 1.0f / sqrtf(block_reduce<Sum>(squares, scratch) / static_cast<float>(size) + norm.epsilon)};
}

inline int ceil_divide(int value, int by) { return (value + by - 1) / by; }

// The error that a function of the table returns. CUDA keeps an error until cudaGetLastError takes it, so it is taken
// here: else the check after the next launch would find it again and blame that launch.
inline int32_t told(cudaError_t error) {
  if (error != cudaSuccess) cudaGetLastError();
  return error;
}

}  // namespace kdtw::cuda
