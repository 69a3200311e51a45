// Small kernels that use every part of the simulated device once; tests/test_gpu_simulator.py calls them. Not part of
// the product.
#include <cstdint>

#include "backend/cuda/rt.h"

#define EXPORT __attribute__((visibility("default")))

namespace {

constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(kAll, value, offset);
  return value;
}

// Lane l of each warp gets the results of all shuffles and votes about its value, [threads, 7].
__global__ void collectives_kernel(const int* in, int* out) {
  const int value = in[threadIdx.x];
  int* row = out + 7 * threadIdx.x;
  row[0] = __shfl_sync(kAll, value, 5);
  row[1] = __shfl_up_sync(kAll, value, 3);
  row[2] = __shfl_xor_sync(kAll, value, 9);
  row[3] = static_cast<int>(__ballot_sync(kAll, value & 1));
  row[4] = __any_sync(kAll, value == 40) != 0;
  row[5] = __syncthreads_count(value & 1);
  row[6] = __syncthreads_or(value == 40) != 0;
}

// Lanes pass their values on through shared memory.
__global__ void neighbours_kernel(const int* in, int* out) {
  KDTW_SHARED(int, shared, 32);
  shared[threadIdx.x] = in[threadIdx.x];
  __syncwarp();
  out[threadIdx.x] = shared[threadIdx.x ^ 1];
}

// y[n] = sum of x[n, :], a block a row.
__global__ void row_sum_kernel(const float* x, int size, float* y) {
  KDTW_SHARED(float, partial, 8);
  KDTW_SHARED(float, row, 256);
  for (int k = threadIdx.x; k < size; k += blockDim.x) row[k] = x[static_cast<size_t>(blockIdx.x) * size + k];
  __syncthreads();
  float sum = 0.0f;
  for (int k = threadIdx.x; k < size; k += blockDim.x) sum += row[size - 1 - k];
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x < 32) {
    sum = warp_sum(threadIdx.x < blockDim.x / 32 ? partial[threadIdx.x] : 0.0f);
    if (threadIdx.x == 0) y[blockIdx.x] = sum;
  }
}

// Counts by remainder, each block those of its own values.
__global__ void histogram_kernel(const int* values, int count, int bins, int* counts) {
  KDTW_SHARED(int, mine, 64);
  if (threadIdx.x < bins) mine[threadIdx.x] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < count; i += gridDim.x * blockDim.x) {
    atomicAdd(&mine[values[i] % bins], 1);
  }
  __syncthreads();
  if (threadIdx.x < bins) counts[blockIdx.x * bins + threadIdx.x] = mine[threadIdx.x];
}

// One kernel for every way that threads may lack order; `bug` says which rule is broken, 0 none.
__global__ void rules_kernel(int bug, const float* in, float* out, int n) {
  KDTW_SHARED(float, shared, 64);
  const int t = threadIdx.x;
  const float value = bug == 1 ? in[t + n] : in[t];  // 1: out of bounds
  if (bug != 2 || t != 7) shared[t] = value;         // 2: one element stays uninitialised
  if (bug == 3) {                                    // 3: a barrier that not all threads reach
    if (t < 32) __syncthreads();
  } else if (bug == 4) {  // 4: two barriers that look like one
    if (t < 32)
      __syncthreads();
    else
      __syncthreads();
  } else if (bug != 5) {  // 5: no barrier between the store and the load
    __syncthreads();
  }
  float other = shared[bug == 10 ? 64 + t : 63 - t];  // 10: beyond the array, in what is not mapped to any
  if (bug != 6) __syncthreads();                      // 6: no barrier between the load and the store
  shared[t] = other;
  __syncthreads();
  if (bug == 7 && t < 16) other += __shfl_xor_sync(kAll, other, 16);                       // 7: lanes are missing
  if (bug == 8) other += static_cast<float>(*reinterpret_cast<const long long*>(in + 1));  // 8: misaligned
  if (bug == 9) out[0] = other;                       // 9: all threads of all blocks store to one place
  if (bug == 11 && blockIdx.x == 1) other += out[t];  // 11: what another block may have stored
  if (bug == 12) other = static_cast<float>(__ballot_sync(0xffffu, 1));  // 12: a part of a warp
  out[blockIdx.x * n + t] = other;
}

// All conversions of in [n]: half and bfloat16 bits, and back.
__global__ void round_kernel(const float* in, int n, unsigned short* halves, unsigned short* bfloats, float* back) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const __half h = __float2half_rn(in[i]);
  const __nv_bfloat16 b = __float2bfloat16_rn(in[i]);
  halves[i] = __half_as_ushort(h);
  bfloats[i] = __bfloat16_as_ushort(b);
  back[2 * i] = __half2float(h);
  back[2 * i + 1] = __bfloat162float(b);
}

// y [N, 8] = w [N, K] x[8, K]^T by tensor cores; a warp for 16 rows of w.
__global__ void mma_kernel(const __half* w, const __half* x, int inputs, float* y) {
  const int lane = threadIdx.x, group = lane / 4, member = lane % 4, first = blockIdx.x * 16;
  float d[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  const auto pair = [](const __half* from) { return *reinterpret_cast<const uint32_t*>(from); };
  for (int k = 2 * member; k < inputs; k += 8) {
    const uint32_t a[2] = {pair(w + (first + group) * inputs + k), pair(w + (first + group + 8) * inputs + k)};
    const uint32_t b[1] = {pair(x + group * inputs + k)};
    KDTW_MMA_16x8x8(d, a, b);
  }
  for (int i = 0; i < 4; ++i) y[(first + group + i / 2 * 8) * 8 + 2 * member + i % 2] = d[i];
}

// Adds one to *length and goes on until it is `most`.
__global__ void step_kernel(int* length, int most, int* trace, cudaGraphConditionalHandle handle) {
  if (threadIdx.x == 0) {
    trace[*length] = *length * *length;
    *length += 1;
    cudaGraphSetConditional(handle, *length < most);
  }
}

// y = x + amount, an element a thread: threads that never meet.
__global__ void add_kernel(float* x, float amount, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) x[i] += amount;
}

// Copies n float4, each `stride` apart from the last.
__global__ void copy_kernel(const float4* in, float4* out, int n, int stride) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) out[i] = in[i * stride];
}

// Every lane reads shared memory at lane * stride.
__global__ void bank_kernel(float* out, int stride) {
  KDTW_SHARED(float, shared, 32 * 32);
  for (int i = threadIdx.x; i < 32 * 32; i += 32) shared[i] = 1.0f;
  __syncthreads();
  out[threadIdx.x] = shared[threadIdx.x * stride];
}

}  // namespace

extern "C" {

EXPORT int sample_collectives(const int* in, int threads, int* out) {
  KDTW_LAUNCH(collectives_kernel, dim3(1), dim3(threads), nullptr, in, out);
  return cudaGetLastError();
}
EXPORT int sample_neighbours(const int* in, int* out) {
  KDTW_LAUNCH(neighbours_kernel, dim3(1), dim3(32), nullptr, in, out);
  return cudaGetLastError();
}
EXPORT int sample_row_sum(const float* x, int rows, int size, float* y) {
  KDTW_LAUNCH(row_sum_kernel, dim3(rows), dim3(128), nullptr, x, size, y);
  return cudaGetLastError();
}
EXPORT int sample_histogram(const int* values, int count, int bins, int blocks, int* counts) {
  KDTW_LAUNCH(histogram_kernel, dim3(blocks), dim3(64), nullptr, values, count, bins, counts);
  return cudaGetLastError();
}
EXPORT int sample_rules(int bug, const float* in, float* out, int blocks) {
  KDTW_LAUNCH(rules_kernel, dim3(blocks), dim3(64), nullptr, bug, in, out, 64);
  return cudaGetLastError();
}
EXPORT int sample_round(const float* in, int n, unsigned short* halves, unsigned short* bfloats, float* back) {
  KDTW_LAUNCH(round_kernel, dim3((n + 127) / 128), dim3(128), nullptr, in, n, halves, bfloats, back);
  return cudaGetLastError();
}
EXPORT int sample_mma(const void* w, const void* x, int outputs, int inputs, float* y) {
  KDTW_LAUNCH(mma_kernel, dim3(outputs / 16), dim3(32), nullptr, static_cast<const __half*>(w),
              static_cast<const __half*>(x), inputs, y);
  return cudaGetLastError();
}
EXPORT int sample_copy(const void* in, void* out, int n, int stride) {
  KDTW_LAUNCH(copy_kernel, dim3((n + 63) / 64), dim3(64), nullptr, static_cast<const float4*>(in),
              static_cast<float4*>(out), n, stride);
  return cudaGetLastError();
}
EXPORT int sample_bank(float* out, int stride) {
  KDTW_LAUNCH(bank_kernel, dim3(1), dim3(32), nullptr, out, stride);
  return cudaGetLastError();
}

// Two streams: the first adds 1, the second 10 after it, the host reads; `wait` as it must. Returns an error.
EXPORT int sample_streams(float* x, int n, float* host, int wait) {
  cudaStream_t first = nullptr, second = nullptr;
  cudaEvent_t event = nullptr;
  cudaStreamCreateWithFlags(&first, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&second, cudaStreamNonBlocking);
  cudaEventCreateWithFlags(&event, cudaEventDisableTiming);
  float* pinned = nullptr;
  cudaMallocHost(reinterpret_cast<void**>(&pinned), n * sizeof(float));
  for (int i = 0; i < n; ++i) pinned[i] = -1.0f;
  KDTW_LAUNCH(add_kernel, dim3((n + 31) / 32), dim3(32), first, x, 1.0f, n);
  cudaEventRecord(event, first);
  cudaStreamWaitEvent(second, event, 0);
  KDTW_LAUNCH(add_kernel, dim3((n + 31) / 32), dim3(32), second, x, 10.0f, n);
  cudaMemcpyAsync(pinned, x, n * sizeof(float), cudaMemcpyDeviceToHost, second);
  if (wait) cudaStreamSynchronize(second);
  for (int i = 0; i < n; ++i) host[i] = pinned[i];
  cudaStreamSynchronize(second);
  cudaEventDestroy(event);
  cudaStreamDestroy(first);
  cudaStreamDestroy(second);
  cudaFreeHost(pinned);
  return cudaGetLastError();
}

// A graph whose WHILE node steps until *length is `most`; launched `times` times.
EXPORT int sample_loop(int* length, int most, int* trace, int times) {
  cudaStream_t stream = nullptr;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  cudaGraphConditionalHandle handle = 0;
  cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  cudaGraphCreate(&graph, 0);
  cudaGraphConditionalHandleCreate(&handle, graph, 1, cudaGraphCondAssignDefault);
  cudaGraphNodeParams params = {};
  params.type = cudaGraphNodeTypeConditional;
  params.conditional.handle = handle;
  params.conditional.type = cudaGraphCondTypeWhile;
  params.conditional.size = 1;
  cudaGraphNode_t node = nullptr;
  int error = cudaGraphAddNode(&node, graph, nullptr, nullptr, 0, &params);
  if (error) return error;
  cudaStreamBeginCaptureToGraph(stream, params.conditional.phGraph_out[0], nullptr, nullptr, 0,
                                cudaStreamCaptureModeRelaxed);
  KDTW_LAUNCH(step_kernel, dim3(1), dim3(32), stream, length, most, trace, handle);
  cudaGraph_t body = nullptr;
  cudaStreamEndCapture(stream, &body);
  error = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  for (int i = 0; i < times && !error; ++i) error = cudaGraphLaunch(exec, stream);
  if (!error) error = cudaStreamSynchronize(stream);
  cudaGraphExecDestroy(exec);
  cudaStreamDestroy(stream);
  return error ? error : cudaGetLastError();
}
}
