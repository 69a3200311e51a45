// The table of functions through which the engine calls the library, and the few CUDA runtime calls among them.
#include <cstring>
#include <type_traits>

#include "backend/cuda/kernels/device_math.h"

#ifndef KDTW_CUDA_KIND
#define KDTW_CUDA_KIND "CUDA"
#endif
#ifndef KDTW_CUDA_ARCHITECTURES
#define KDTW_CUDA_ARCHITECTURES "unknown"
#endif

namespace kdtw::cuda {

template <auto member>
struct Type;
template <typename F, F* KdtwCudaTable::* member>
struct Type<member> {
  using type = F;
};
// Functions that the other files define. Their types are taken from the table, so that they cannot differ from it.
Type<&KdtwCudaTable::embed>::type embed;
Type<&KdtwCudaTable::gather>::type gather;
Type<&KdtwCudaTable::norm>::type norm;
Type<&KdtwCudaTable::quantise>::type quantise;
Type<&KdtwCudaTable::scale_to_fp16>::type scale_to_fp16;
Type<&KdtwCudaTable::linear>::type linear;
Type<&KdtwCudaTable::linear_int8>::type linear_int8;
Type<&KdtwCudaTable::linear_tensor>::type linear_tensor;
Type<&KdtwCudaTable::activate>::type activate;
Type<&KdtwCudaTable::angles>::type angles;
Type<&KdtwCudaTable::turn_heads>::type turn_heads;
Type<&KdtwCudaTable::store>::type store;
Type<&KdtwCudaTable::copy>::type copy;
Type<&KdtwCudaTable::attend>::type attend;
Type<&KdtwCudaTable::pick>::type pick;
Type<&KdtwCudaTable::advance>::type advance;
Type<&KdtwCudaTable::begin_graph>::type begin_graph;
Type<&KdtwCudaTable::end_graph>::type end_graph;
Type<&KdtwCudaTable::launch_graph>::type launch_graph;
Type<&KdtwCudaTable::destroy_graph>::type destroy_graph;

namespace {

const char* describe(int32_t error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

int32_t device_count(int32_t* count) {
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  *count = error == cudaSuccess ? devices : 0;
  return told(error);
}

int32_t device_info(int32_t device, KdtwDevice* info) {
  cudaDeviceProp properties;
  const cudaError_t error = cudaGetDeviceProperties(&properties, device);
  if (error == cudaSuccess) {
    std::memcpy(info->name, properties.name, sizeof info->name);
    info->major = properties.major, info->minor = properties.minor;
    info->memory_bytes = properties.totalGlobalMem;
  }
  return told(error);
}

static_assert(kKdtwOutOfMemory == cudaErrorMemoryAllocation);
int32_t use_device(int32_t device, int32_t* before) {
  int current = 0;
  cudaError_t error = cudaGetDevice(&current);
  if (error == cudaSuccess && current != device) error = cudaSetDevice(device);
  *before = current;
  return told(error);
}
int32_t allocate(void** memory, size_t bytes) { return told(cudaMalloc(memory, bytes)); }
int32_t release(void* memory) { return told(cudaFree(memory)); }
int32_t allocate_host(void** host, size_t bytes) { return told(cudaMallocHost(host, bytes)); }
int32_t release_host(void* host) { return told(cudaFreeHost(host)); }

int32_t create_stream(void** stream) {
  cudaStream_t created = nullptr;
  const cudaError_t error = cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking);
  *stream = created;
  return told(error);
}
int32_t destroy_stream(void* stream) { return told(cudaStreamDestroy(static_cast<cudaStream_t>(stream))); }
int32_t synchronise(void* stream) { return told(cudaStreamSynchronize(static_cast<cudaStream_t>(stream))); }

int32_t follow(void* stream, void* other) {
  cudaEvent_t reached = nullptr;
  cudaError_t error = cudaEventCreateWithFlags(&reached, cudaEventDisableTiming);
  if (error != cudaSuccess) return told(error);
  error = cudaEventRecord(reached, static_cast<cudaStream_t>(other));
  if (error == cudaSuccess) error = cudaStreamWaitEvent(static_cast<cudaStream_t>(stream), reached, 0);
  cudaEventDestroy(reached);  // CUDA keeps it until nothing waits for it any more
  return told(error);
}

int32_t copy_in(void* to, const void* host, size_t bytes, void* stream) {
  return told(cudaMemcpyAsync(to, host, bytes, cudaMemcpyHostToDevice, static_cast<cudaStream_t>(stream)));
}
int32_t copy_out(void* host, const void* from, size_t bytes, void* stream) {
  return told(cudaMemcpyAsync(host, from, bytes, cudaMemcpyDeviceToHost, static_cast<cudaStream_t>(stream)));
}

constexpr KdtwCudaTable kTable = {
    kKdtwCudaVersion, KDTW_CUDA_KIND, KDTW_CUDA_ARCHITECTURES,
    describe,         device_count,   device_info,
    use_device,       allocate,       release,
    allocate_host,    release_host,   create_stream,
    destroy_stream,   synchronise,    follow,
    copy_in,          copy_out,       embed,
    gather,           norm,           quantise,
    scale_to_fp16,    linear,         linear_int8,
    linear_tensor,    activate,       angles,
    turn_heads,       store,          copy,
    attend,           pick,           advance,
    begin_graph,      end_graph,      launch_graph,
    destroy_graph,
};

}  // namespace
}  // namespace kdtw::cuda

extern "C" __attribute__((visibility("default"))) const KdtwCudaTable* kdtw_cuda_table(int32_t version) {
  return version == kKdtwCudaVersion ? &kdtw::cuda::kTable : nullptr;
}
