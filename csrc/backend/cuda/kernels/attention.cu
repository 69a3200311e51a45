// Writing keys and values to the cache, and attention over them with T5's relative position bias.
//
// A block computes one head of one query. It reads the keys in tiles of kTile and corrects what it has summed when a
// tile raises the maximum (the "online" softmax), so shared memory does not grow with the length. Its sums depend on
// this query and its keys alone: a query gets the same bits in a pass by itself and in a pass with others.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

constexpr int kThreads = 128, kTile = kThreads;  // a tile has one key for each thread
constexpr int kTileWarps = kThreads / kWarp;

// Stores one head's key and value of one token in the cache's format; block: token * heads + head. The row is filled up
// with zeros to `stride`, because attention reads it in pieces of 16 bytes.
template <typename Format>
__global__ void __launch_bounds__(kBlock)
    store_kernel(typename Format::Type* keys_to, typename Format::Type* values_to, int heads, int head_size, int stride,
                 int capacity, const TokenAt* tokens, const float* keys, const float* values, int input_stride) {
  const int h = blockIdx.x % heads, t = blockIdx.x / heads;
  const TokenAt token = tokens[t];
  if (token.length == 0) return;
  const size_t place = ((static_cast<size_t>(token.row) * heads + h) * capacity + token.position) * stride;
  const size_t from = static_cast<size_t>(t) * input_stride + h * head_size;
  for (int d = threadIdx.x; d < stride; d += blockDim.x) {
    keys_to[place + d] = Format::round(d < head_size ? keys[from + d] : 0.0f);
    values_to[place + d] = Format::round(d < head_size ? values[from + d] : 0.0f);
  }
}

// out = softmax(q k^T + bias) v for one head of one query; block: token * heads + head. A query of length 0 gets zeros.
// pieces: of 16 bytes, in a key. lanes: how many lanes of a warp read one key together; a power of two.
template <typename Format>
__global__ void __launch_bounds__(kThreads)
    attend_kernel(const uint4* keys, const uint4* values, int heads, int head_size, int pieces, int capacity, int lanes,
                  const TokenAt* tokens, const float* queries, int query_stride, const float* bias, int lowest,
                  int highest, float* out) {
  constexpr int kEach = Format::kEach, kMost = Format::kEach == 4 ? kKdtwLargestHeadFp32 : kKdtwLargestHead;
  KDTW_SHARED(float, query, kMost);
  KDTW_SHARED(float, weights, kTile);
  KDTW_SHARED(float, partial, kThreads* kEach);
  const int h = blockIdx.x % heads, t = blockIdx.x / heads, thread = threadIdx.x, lane = lane_id();
  const TokenAt token = tokens[t];
  const size_t row = (static_cast<size_t>(token.row) * heads + h) * capacity * pieces;
  keys += row, values += row;
  const float* table = bias != nullptr ? bias + static_cast<size_t>(h) * (lowest + highest + 1) + lowest : nullptr;
  for (int d = thread; d < pieces * kEach; d += kThreads)
    query[d] = d < head_size ? queries[static_cast<size_t>(t) * query_stride + h * head_size + d] : 0.0f;
  __syncthreads();

  // Of the values, a thread adds up one 16-byte piece (`piece`) of every groups-th position, beginning at `group`.
  const int groups = kThreads / pieces, group = thread / pieces, piece = thread % pieces;
  float largest = -INFINITY, total = 0.0f, sums[kEach];
#pragma unroll
  for (int e = 0; e < kEach; ++e) sums[e] = 0.0f;
  for (int start = 0; start < token.length; start += kTile) {
    const int count = min(kTile, token.length - start);
    // Scores. Each warp has 32 keys of the tile; `lanes` lanes read a key, so a warp reads neighbouring memory.
    for (int j = warp_id() * kWarp + lane / lanes; j < (warp_id() + 1) * kWarp; j += kWarp / lanes) {
      float score = 0.0f;
      if (j < count) {
        for (int c = lane % lanes; c < pieces; c += lanes) {
          float key[kEach];
          Format::expand(keys[static_cast<size_t>(start + j) * pieces + c], key);
#pragma unroll
          for (int e = 0; e < kEach; ++e) score = fmaf(query[c * kEach + e], key[e], score);
        }
      }
      for (int offset = lanes / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(kAllLanes, score, offset);
      if (lane % lanes == 0) {
        if (table != nullptr && j < count) score += table[max(-lowest, min(highest, start + j - token.position))];
        weights[j] = j < count ? score : -INFINITY;
      }
    }
    __syncthreads();
    // Every warp computes the tile's maximum and sum itself, from the same numbers in the same order: that needs no
    // barrier to hand them around.
    float top = weights[lane];
#pragma unroll
    for (int w = 1; w < kTileWarps; ++w) top = fmaxf(top, weights[w * kWarp + lane]);
    const float reached = fmaxf(largest, warp_reduce<Largest>(top));
    const float mine = expf(weights[thread] - reached), shrink = expf(largest - reached);
    __syncthreads();
    weights[thread] = mine;
    __syncthreads();
    float added = weights[lane];
#pragma unroll
    for (int w = 1; w < kTileWarps; ++w) added += weights[w * kWarp + lane];
    total = total * shrink + warp_reduce<Sum>(added);
    largest = reached;
#pragma unroll
    for (int e = 0; e < kEach; ++e) sums[e] *= shrink;
    if (group < groups) {
      for (int j = group; j < count; j += groups) {
        float value[kEach];
        Format::expand(values[static_cast<size_t>(start + j) * pieces + piece], value);
#pragma unroll
        for (int e = 0; e < kEach; ++e) sums[e] = fmaf(weights[j], value[e], sums[e]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int e = 0; e < kEach; ++e) partial[e * kThreads + thread] = sums[e];
  __syncthreads();
  for (int d = thread; d < head_size; d += kThreads) {
    const float* from = partial + d % kEach * kThreads + d / kEach;
    float sum = from[0];
    for (int g = 1; g < groups; ++g) sum += from[g * pieces];
    out[(static_cast<size_t>(t) * heads + h) * head_size + d] = token.length > 0 ? sum / total : 0.0f;
  }
}

}  // namespace

int32_t store(const KdtwCache* cache, const TokenAt* tokens, int32_t count, const float* keys, const float* values,
              int32_t input_stride, void* stream) {
  return with_format(cache->format, [&](auto format) {
    using Type = typename decltype(format)::Type;
    const int threads = min(kBlock, ceil_divide(cache->stride, kWarp) * kWarp);
    KDTW_LAUNCH((store_kernel<decltype(format)>), dim3(count * cache->heads), dim3(threads), stream,
                static_cast<Type*>(cache->keys), static_cast<Type*>(cache->values), cache->heads, cache->head_size,
                cache->stride, cache->capacity, tokens, keys, values, input_stride);
  });
}

int32_t attend(const KdtwCache* cache, const TokenAt* tokens, int32_t count, const float* queries, int32_t query_stride,
               const PositionBias* bias, float* out, void* stream) {
  return with_format(cache->format, [&](auto format) {
    using Format = decltype(format);
    const int pieces = cache->stride / Format::kEach;
    int lanes = 1;
    while (lanes < pieces && lanes < kWarp) lanes *= 2;
    KDTW_LAUNCH((attend_kernel<Format>), dim3(count * cache->heads), dim3(kThreads), stream,
                static_cast<const uint4*>(cache->keys), static_cast<const uint4*>(cache->values), cache->heads,
                cache->head_size, pieces, cache->capacity, lanes, tokens, queries, query_stride, bias->table,
                bias->lowest, bias->highest, out);
  });
}

}  // namespace kdtw::cuda
