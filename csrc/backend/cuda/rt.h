// The one header by which kernel sources see CUDA: nvcc's own, or the simulated device when g++ compiles them.
// Kernels use these macros for shared memory, launches and what is written in PTX; everything else is CUDA as it is.
#pragma once

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KDTW_SHARED(T, name, n) __shared__ T name[n]
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  (kernel)<<<(grid), (block), (shared), (stream)>>>(__VA_ARGS__)
#else
#include "backend/cuda/sim/simt.h"

#define KDTW_SHARED(T, name, n) \
  T* name = (T*)::simt::shared_slot(SIMT_SITE, sizeof(T) * (n), alignof(T) > 16 ? alignof(T) : 16, #name)
#define KDTW_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ::simt::launch(#kernel, kernel, grid, block, shared, stream, false, __VA_ARGS__)
#endif
