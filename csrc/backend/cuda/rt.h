// How kernels see CUDA: its headers, and macros for shared memory, launches and the one instruction written in PTX.
// A compiler other than nvcc must be given stand-ins for these headers that define the macros, too (docs/gpu_proof.md).
// KDTW_MMA_16x8x8: a warp's D[16,8] += A[16,8] B[8,8] on tensor cores, halves in, floats out; fragments as PTX has
// them.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef __CUDACC__
#define KDTW_SHARED(T, name, n) __shared__ T name[n]
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (kernel)<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)

namespace kdtw::cuda {
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
}  // namespace kdtw::cuda
#define KDTW_MMA_16x8x8(d, a, b) ::kdtw::cuda::mma_16x8x8(d, a, b)
#endif
