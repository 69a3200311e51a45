// As csrc/backend/cuda/rt.h, for the sample kernels: CUDA by nvcc, or the simulated device by g++.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#define KDTW_SHARED(T, name, n) __shared__ T name[n]
#define KDTW_DYN_SHARED(T, name)                                 \
  extern __shared__ __align__(16) unsigned char dynamic_bytes[]; \
  T* name = reinterpret_cast<T*>(dynamic_bytes)
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (kernel)<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)

namespace kdtw {
__device__ __forceinline__ void mma_16x8x8(float* d, const uint32_t* a, const uint32_t* b) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5},{%6},{%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
}  // namespace kdtw
#define KDTW_MMA_16x8x8(d, a, b) kdtw::mma_16x8x8(d, a, b)
#else
#include "backend/cuda/sim/simt.h"

#define KDTW_SHARED(T, name, n) \
  T* name = (T*)::simt::shared_slot(SIMT_SITE, sizeof(T) * (n), alignof(T) > 16 ? alignof(T) : 16, #name)
#define KDTW_DYN_SHARED(T, name) T* name = (T*)::simt::dyn_shared()
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::simt::launch(#kernel, kernel, grid, block, shared, stream, false, __VA_ARGS__)
#define KDTW_MMA_16x8x8(d, a, b) ::simt::mma_f16(SIMT_SITE, a, b, d, 8)
#endif
