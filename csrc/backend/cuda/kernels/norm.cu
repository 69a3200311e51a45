// RMS norm (Zhang and Sennrich 2019) and layer norm (Ba et al. 2016), and tokens as small numbers times a scale, which
// products with int8 and scaled fp16 weights read. A block for each token.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

// out may be x: a thread writes only what it alone reads after the last barrier.
__global__ void __launch_bounds__(kBlock) norm_kernel(const float* x, Norm norm, int size, int adds, float* out) {
  KDTW_SHARED(float, scratch, kWarps);
  x += static_cast<size_t>(blockIdx.x) * size;
  out += static_cast<size_t>(blockIdx.x) * size;
  const Moments of_token = moments(x, size, norm, scratch);
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = of_token.normed(norm, x[k], k);
    out[k] = adds ? out[k] + value : value;
  }
}

// The two formats of scaled tokens: how the largest |x| determines the scale. int8: as Kernels::quantise of the CPU, so
// that products of the same x have the same bits there and here.
struct Bytes {
  using Type = int8_t;
  static __device__ __forceinline__ float factor(float largest) { return 127.0f / largest; }
  static __device__ __forceinline__ float scale(float largest) { return largest / 127.0f; }
  static __device__ __forceinline__ Type round(float value) {
    return static_cast<int8_t>(static_cast<int>(rintf(value)));
  }
};

// Scaled fp16: the scale is a power of two, so that scaling rounds nothing. A token of any size keeps the 11 binary
// digits of fp16.
struct Halves {
  using Type = uint16_t;
  // The biased exponent of the factor 1 / scale; capped so that neither factor nor scale is subnormal.
  static __device__ __forceinline__ unsigned exponent(float largest) {
    return min(2u * 127u + 14u - (__float_as_uint(largest) >> 23), 253u);
  }
  static __device__ __forceinline__ float factor(float largest) { return __uint_as_float(exponent(largest) << 23); }
  static __device__ __forceinline__ float scale(float largest) {
    return __uint_as_float((254u - exponent(largest)) << 23);
  }
  static __device__ __forceinline__ Type round(float value) { return Fp16::round(value); }
};

// to[t] = x[t] / scales[t], of norm(x) where there is a norm; zeros from `size` to `stride`. A token with an infinity
// or NaN gets zeros and the scale NaN: all its products are NaN, and no other token's.
template <typename Format>
__global__ void __launch_bounds__(kBlock)
    scale_kernel(const float* x, Norm norm, int size, int stride, typename Format::Type* to, float* scales) {
  KDTW_SHARED(float, scratch, kWarps);
  constexpr float kSmallest = 1e-35f;  // tokens with less everywhere count as zero: 127 / largest might overflow
  x += static_cast<size_t>(blockIdx.x) * size;
  to += static_cast<size_t>(blockIdx.x) * stride;
  const bool normed = norm.scale != nullptr;
  const Moments of_token = normed ? moments(x, size, norm, scratch) : Moments{};
  float top = 0.0f;
  int bad = 0;
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = normed ? of_token.normed(norm, x[k], k) : x[k];
    top = fmaxf(top, fabsf(value));
    bad |= !is_finite(value);
  }
  const float largest = block_reduce<Largest>(top, scratch);
  const bool finite = __syncthreads_or(bad) == 0, usable = finite && largest >= kSmallest;
  const float factor = usable ? Format::factor(largest) : 0.0f;
  for (int k = threadIdx.x; k < stride; k += kBlock) {
    float value = 0.0f;
    if (usable && k < size) value = normed ? of_token.normed(norm, x[k], k) : x[k];
    to[k] = Format::round(value * factor);
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = finite ? (usable ? Format::scale(largest) : 0.0f) : NAN;
}

}  // namespace

int32_t norm(const Norm* norm, const float* x, int32_t tokens, int32_t size, int32_t adds, float* out, void* stream) {
  KDTW_LAUNCH(norm_kernel, dim3(tokens), dim3(kBlock), stream, x, *norm, size, adds, out);
  return cudaGetLastError();
}

int32_t quantise(const float* x, const Norm* norm, int32_t tokens, int32_t size, int32_t stride, int8_t* to,
                 float* scales, void* stream) {
  KDTW_LAUNCH(scale_kernel<Bytes>, dim3(tokens), dim3(kBlock), stream, x, *norm, size, stride, to, scales);
  return cudaGetLastError();
}

int32_t scale_to_fp16(const float* x, const Norm* norm, int32_t tokens, int32_t size, int32_t stride, uint16_t* to,
                      float* scales, void* stream) {
  KDTW_LAUNCH(scale_kernel<Halves>, dim3(tokens), dim3(kBlock), stream, x, *norm, size, stride, to, scales);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
