// Small kernels with a block for each row: embedding of tokens, selection of hidden states, and the activation alone.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

// What is added to token t's embedding, because teacher marked[t] wrote it (beta); null where the student did.
__device__ __forceinline__ const float* mark_of(const uint8_t* marked, int t, const float* marks, int size) {
  return marked != nullptr && marked[t] > 0 ? marks + static_cast<size_t>(marked[t] - 1) * size : nullptr;
}

template <typename Format>
__global__ void __launch_bounds__(kBlock)
    embed_kernel(const typename Format::Type* table, const float* scales, int stride, float scale, const int32_t* ids,
                 const uint8_t* marked, const float* mark, const TokenAt* places, const float* positions, int size,
                 float* out) {
  const int t = blockIdx.x;
  const typename Format::Type* row = table + static_cast<size_t>(ids[t]) * stride;
  const float* added = mark_of(marked, t, mark, size);
  // A row of a draft that has stopped may stand where the table has ended.
  const bool stands = positions != nullptr && places[t].length > 0;
  const float* position = stands ? positions + static_cast<size_t>(places[t].position) * size : nullptr;
  const float of_row = scales != nullptr ? scales[ids[t]] : 1.0f;
  for (int k = threadIdx.x; k < size; k += kBlock) {
    float value = of_row * Format::one(row[k]) * scale;
    if (added != nullptr) value += added[k];
    if (position != nullptr) value += position[k];
    out[static_cast<size_t>(t) * size + k] = value;
  }
}

__global__ void __launch_bounds__(kBlock) gather_kernel(const float* x, const int32_t* indices, int size, float* out) {
  const float* row = x + static_cast<size_t>(indices[blockIdx.x]) * size;
  for (int k = threadIdx.x; k < size; k += kBlock) out[static_cast<size_t>(blockIdx.x) * size + k] = row[k];
}

__global__ void __launch_bounds__(kBlock)
    activate_kernel(Activation activation, const float* hidden, int size, float* out) {
  const float* row = hidden + static_cast<size_t>(blockIdx.x) * size * (activation.gated ? 2 : 1);
  for (int k = threadIdx.x; k < size; k += kBlock) {
    const float value = apply(activation.function, row[k]);
    out[static_cast<size_t>(blockIdx.x) * size + k] = activation.gated ? value * row[size + k] : value;
  }
}

}  // namespace

int32_t embed(const KdtwWeight* table, float scale, const int32_t* ids, const uint8_t* marked, const float* mark,
              const TokenAt* places, const float* positions, int32_t tokens, float* out, void* stream) {
  const auto launch = [&](auto format) {
    using Format = decltype(format);
    KDTW_LAUNCH((embed_kernel<Format>), dim3(tokens), dim3(kBlock), stream,
                static_cast<const typename Format::Type*>(table->data), table->scales, table->stride, scale, ids,
                marked, mark, places, positions, table->inputs, out);
  };
  if (table->format != kKdtwInt8) return with_format(table->format, launch);
  launch(Int8{});
  return cudaGetLastError();
}

int32_t gather(const float* x, const int32_t* indices, int32_t count, int32_t size, float* out, void* stream) {
  KDTW_LAUNCH(gather_kernel, dim3(count), dim3(kBlock), stream, x, indices, size, out);
  return cudaGetLastError();
}

int32_t activate(const Activation* activation, const float* hidden, int32_t tokens, int32_t size, float* out,
                 void* stream) {
  KDTW_LAUNCH(activate_kernel, dim3(tokens), dim3(kBlock), stream, *activation, hidden, size, out);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
