// What kernels include in the place of CUDA's headers: those headers, and macros for shared memory, launches and the
// one instruction that is written in PTX. For the simulated device g++ finds other headers of the same names, which
// define the macros, too (docs/gpu_proof.md). KDTW_MMA_16x8x8: one warp computes D[16,8] += A[16,8] B[8,8] on tensor
// cores, fp16 in, fp32 out; each lane holds the fragments that PTX gives it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#ifdef __CUDACC__
#define KDTW_SHARED(T, name, n) __shared__ T name[n]
#define KDTW_LAUNCH(kernel, grid, block, stream, ...) \
  (kernel)<<<(grid), (block), 0, static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__)

namespace kdtw::cuda {
__device__ __forceinline__ void mma_16x8x8(float (&d)[4], const unsigned (&a)[2], const unsigned (&b)[1]) {
  asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
               : "r"(a[0]), "r"(a[1]), "r"(b[0]));
}
}  // namespace kdtw::cuda
#define KDTW_MMA_16x8x8(d, a, b) ::kdtw::cuda::mma_16x8x8(d, a, b)
#endif
