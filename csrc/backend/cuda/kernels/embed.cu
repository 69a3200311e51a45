// Copies of rows: the embedding's of a token, a pass's hidden states; and the activation by itself.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

template <typename Format>
__global__ void __launch_bounds__(kBlock)
    embed_kernel(const typename Format::Type* table, int stride, const int32_t* ids, const uint8_t* marked,
                 const float* mark, int size, float* out) {
  const int t = blockIdx.x;
  const typename Format::Type* row = table + static_cast<size_t>(ids[t]) * stride;
  const float* add = marked != nullptr && marked[t] != 0 ? mark + static_cast<size_t>(marked[t] - 1) * size : nullptr;
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = Format::one(row[k]);
    out[static_cast<size_t>(t) * size + k] = add != nullptr ? value + add[k] : value;
  }
}

__global__ void __launch_bounds__(kBlock)
    embed_int8_kernel(const int8_t* table, const float* scales, int stride, const int32_t* ids, const uint8_t* marked,
                      const float* mark, int size, float* out) {
  const int t = blockIdx.x;
  const int8_t* row = table + static_cast<size_t>(ids[t]) * stride;
  const float* add = marked != nullptr && marked[t] != 0 ? mark + static_cast<size_t>(marked[t] - 1) * size : nullptr;
  const float scale = scales[ids[t]];
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = scale * static_cast<float>(row[k]);
    out[static_cast<size_t>(t) * size + k] = add != nullptr ? value + add[k] : value;
  }
}

__global__ void __launch_bounds__(kBlock) gather_kernel(const float* x, const int32_t* indices, int size, float* out) {
  const float* row = x + static_cast<size_t>(indices[blockIdx.x]) * size;
  for (int k = threadIdx.x; k < size; k += kBlock) out[static_cast<size_t>(blockIdx.x) * size + k] = row[k];
}

__global__ void __launch_bounds__(kBlock) activate_kernel(int gated, const float* hidden, int size, float* out) {
  const float* row = hidden + static_cast<size_t>(blockIdx.x) * size * (gated ? 2 : 1);
  for (int k = threadIdx.x; k < size; k += kBlock)
    out[static_cast<size_t>(blockIdx.x) * size + k] = gated ? gelu(row[k]) * row[size + k] : fmaxf(row[k], 0.0f);
}

}  // namespace

int32_t embed(const KdtwWeight* table, const int32_t* ids, const uint8_t* marked, const float* mark, int32_t tokens,
              float* out, void* stream) {
  const auto run = static_cast<cudaStream_t>(stream);
  const auto launch = [&](auto format) {
    using Format = decltype(format);
    KDTW_LAUNCH((embed_kernel<Format>), dim3(tokens), dim3(kBlock), 0, run,
                static_cast<const typename Format::Type*>(table->data), table->stride, ids, marked, mark, table->inputs,
                out);
  };
  if (table->format == kKdtwInt8) {
    KDTW_LAUNCH(embed_int8_kernel, dim3(tokens), dim3(kBlock), 0, run, static_cast<const int8_t*>(table->data),
                table->scales, table->stride, ids, marked, mark, table->inputs, out);
  } else if (table->format == kKdtwFp32) {
    launch(Fp32{});
  } else if (table->format == kKdtwFp16) {
    launch(Fp16{});
  } else {
    launch(Bf16{});
  }
  return cudaGetLastError();
}

int32_t gather(const float* x, const int32_t* indices, int32_t count, int32_t size, float* out, void* stream) {
  KDTW_LAUNCH(gather_kernel, dim3(count), dim3(kBlock), 0, static_cast<cudaStream_t>(stream), x, indices, size, out);
  return cudaGetLastError();
}

int32_t activate(int32_t gated, const float* hidden, int32_t tokens, int32_t size, float* out, void* stream) {
  KDTW_LAUNCH(activate_kernel, dim3(tokens), dim3(kBlock), 0, static_cast<cudaStream_t>(stream), gated, hidden, size,
              out);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
