// RMS norm (Zhang and Sennrich 2019), and the quantisation of tokens for products with int8 weights: a block a token.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

// 1 / rms(x): thread i adds x[i], x[i + kBlock], ... in this order, wherever in the library a norm is computed.
__device__ __forceinline__ float inverse_rms(const float* x, int size, float epsilon, float* scratch) {
  float squares = 0.0f;
  for (int k = threadIdx.x; k < size; k += kBlock) squares = fmaf(x[k], x[k], squares);
  return 1.0f / sqrtf(block_reduce<Sum>(squares, scratch) / static_cast<float>(size) + epsilon);
}

__global__ void __launch_bounds__(kBlock)
    rms_norm_kernel(const float* x, const float* scale, float epsilon, int size, float* out) {
  KDTW_SHARED(float, scratch, kWarps);
  x += static_cast<size_t>(blockIdx.x) * size;
  out += static_cast<size_t>(blockIdx.x) * size;
  const float inverse = inverse_rms(x, size, epsilon, scratch);
  for (int k = threadIdx.x; k < size; k += kBlock) out[k] = x[k] * inverse * scale[k];
}

// As Kernels::quantise of the CPU, so that products of the same x have the same bits there and here.
__global__ void __launch_bounds__(kBlock) quantise_kernel(const float* x, const float* norm_scale, float epsilon,
                                                          int size, int stride, int8_t* to, float* scales) {
  KDTW_SHARED(float, scratch, kWarps);
  constexpr float kSmallest = 1e-35f;  // of what has a reciprocal
  x += static_cast<size_t>(blockIdx.x) * size;
  to += static_cast<size_t>(blockIdx.x) * stride;
  const float inverse = norm_scale ? inverse_rms(x, size, epsilon, scratch) : 1.0f;
  float top = 0.0f;
  int bad = 0;
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = norm_scale ? x[k] * inverse * norm_scale[k] : x[k];
    top = fmaxf(top, fabsf(value));
    bad |= !is_finite(value);
  }
  const float largest = block_reduce<Largest>(top, scratch);
  const bool finite = __syncthreads_or(bad) == 0, usable = finite && largest >= kSmallest;
  const float factor = usable ? 127.0f / largest : 0.0f;
  for (int k = threadIdx.x; k < stride; k += kBlock) {
    float value = 0.0f;
    if (usable && k < size) value = norm_scale ? x[k] * inverse * norm_scale[k] : x[k];
    to[k] = static_cast<int8_t>(static_cast<int>(rintf(value * factor)));
  }
  if (threadIdx.x == 0) scales[blockIdx.x] = finite ? (usable ? largest / 127.0f : 0.0f) : NAN;
}

}  // namespace

int32_t rms_norm(const float* x, const float* scale, float epsilon, int32_t tokens, int32_t size, float* out,
                 void* stream) {
  KDTW_LAUNCH(rms_norm_kernel, dim3(tokens), dim3(kBlock), 0, static_cast<cudaStream_t>(stream), x, scale, epsilon,
              size, out);
  return cudaGetLastError();
}

int32_t quantise(const float* x, const float* norm_scale, float epsilon, int32_t tokens, int32_t size, int32_t stride,
                 int8_t* to, float* scales, void* stream) {
  KDTW_LAUNCH(quantise_kernel, dim3(tokens), dim3(kBlock), 0, static_cast<cudaStream_t>(stream), x, norm_scale, epsilon,
              size, stride, to, scales);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
