// Queries and keys before attention: norms of heads, and rotary positions (Su et al. 2021).
#include "core/rotary.h"

#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

__global__ void __launch_bounds__(kBlock) angles_kernel(Rotary rotary, const TokenAt* tokens, float* out) {
  const float position = static_cast<float>(tokens[blockIdx.x].position);
  out += static_cast<size_t>(blockIdx.x) * 2 * rotary.pairs;
  for (int i = threadIdx.x; i < rotary.pairs; i += blockDim.x) {
    const Turn turn = turn_by(position * rotary.frequencies[i]);
    out[i] = turn.cosine * rotary.scale;
    out[rotary.pairs + i] = turn.sine * rotary.scale;
  }
}

// One head of one token; block: token * heads + head. Thread i has the pair (i, pairs + i), or beyond the pairs the
// number pairs + i: after the norm's sums nobody reads what another thread writes.
__global__ void __launch_bounds__(kBlock)
    turn_heads_kernel(float* x, int stride, int heads, int size, Norm norm, const float* angles, int pairs) {
  KDTW_SHARED(float, scratch, kWarps);
  const int h = blockIdx.x % heads, t = blockIdx.x / heads;
  x += static_cast<size_t>(t) * stride + h * size;
  const float* cosines = angles + static_cast<size_t>(t) * 2 * pairs;
  const float* sines = cosines + pairs;
  const bool normed = norm.scale != nullptr;
  const Moments of_head = normed ? moments(x, size, norm, scratch) : Moments{};
  const auto value = [&](int k) { return normed ? of_head.normed(norm, x[k], k) : x[k]; };
  for (int i = threadIdx.x; i < size - pairs; i += kBlock) {
    const float b = value(pairs + i);
    if (i < pairs) {
      const float a = value(i);
      x[i] = a * cosines[i] - b * sines[i];
      x[pairs + i] = b * cosines[i] + a * sines[i];
    } else {
      x[pairs + i] = b;
    }
  }
}

}  // namespace

int32_t angles(const Rotary* rotary, const TokenAt* tokens, int32_t count, float* out, void* stream) {
  const int threads = min(kBlock, max(1, ceil_divide(rotary->pairs, kWarp)) * kWarp);
  KDTW_LAUNCH(angles_kernel, dim3(count), dim3(threads), stream, *rotary, tokens, out);
  return cudaGetLastError();
}

int32_t turn_heads(float* x, int32_t stride, int32_t tokens, int32_t heads, int32_t size, const Norm* norm,
                   const float* angles, int32_t pairs, void* stream) {
  KDTW_LAUNCH(turn_heads_kernel, dim3(tokens * heads), dim3(kBlock), stream, x, stride, heads, size, *norm, angles,
              pairs);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
