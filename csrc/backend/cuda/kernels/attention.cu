// Writing keys and values to the cache, and attention over them (AttentionRule).
//
// Keys are read in chunks of kChunk, which begin at multiples of it in the cache; what chunks gave is added up in their
// order (the "online" softmax). A block computes one head of one query: some chunks of it where there are few queries,
// each apart, which attend_join_kernel adds up, and else all. Both add the same numbers in the same order, which depend
// on this query and its keys alone: a query gets the same bits in a pass by itself and in a pass with others.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

constexpr int kThreads = 128, kChunk = kKdtwAttentionChunk;
constexpr int kInFlight = 8;      // loads of 16 bytes that a thread waits for at a time
constexpr int kMostBlocks = 512;  // of a pass: a cache that is much longer than what it holds costs no empty blocks
template <int n>
struct Number {
  static constexpr int value = n;
};
static_assert(kChunk == 2 * kWarp, "a lane has two keys of a chunk");

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

// One head's pieces of 16 bytes of a row, the first ones of a plane of so many; block: pieces, head.
__global__ void __launch_bounds__(kBlock)
    copy_kernel(uint4* keys, uint4* values, int heads, size_t plane, int from, int to, size_t pieces) {
  const size_t i = static_cast<size_t>(blockIdx.x) * kBlock + threadIdx.x;
  if (i >= pieces) return;
  const size_t source = (static_cast<size_t>(from) * heads + blockIdx.y) * plane + i;
  const size_t target = (static_cast<size_t>(to) * heads + blockIdx.y) * plane + i;
  keys[target] = keys[source];
  values[target] = values[source];
}

// The keys that a query sees: from `first`, in the chunk that begins at `begin`, to before `end`.
struct Span {
  int begin, first, end;
};
__device__ __forceinline__ Span span_of(const TokenAt& token, int window) {
  if (window == 0) return {0, 0, token.length};
  const int first = max(0, token.position - window + 1);
  return {first / kChunk * kChunk, first, min(token.length, token.position + window)};
}

// What has been seen of a query's keys: their largest score, and the sum of exp(score - largest).
struct Seen {
  float largest = -INFINITY, total = 0.0f;
};

// Adds a chunk to what was seen before. A sum over the keys becomes sum * shrink + the chunk's * grow.
__device__ __forceinline__ void join(Seen& seen, Seen chunk, float& shrink, float& grow) {
  const float reached = fmaxf(seen.largest, chunk.largest);
  shrink = expf(seen.largest - reached), grow = expf(chunk.largest - reached);
  seen = {reached, seen.total * shrink + chunk.total * grow};
}

// One head of one query; block: token * heads + head, and every gridDim.y-th chunk where `scales` is given. Then a
// chunk's largest score and its sum go to scales [T, H, chunks], and its values times their weights to parts [T, H,
// chunks, D]. A query of length 0 gets zeros.
//
// kLanes lanes read a key together, 16 bytes each, and again kSteps times; pieces: of 16 bytes, in a key, at most
// kLanes kSteps. A thread reads one piece of every kAtOnce-th key and value. Loads begin long before their use
// (kEarly): a chunk's first keys while the values of the one before are added up, its first values before its scores.
// Of the largest heads three blocks a multiprocessor will do: by itself (0) ptxas spills a register there.
template <typename Format, int kLanes, int kSteps>
__global__ void __launch_bounds__(kThreads, kSteps > 1 ? 3 : 0)
    attend_kernel(const uint4* keys, const uint4* values, int key_heads, int head_size, int pieces, int capacity,
                  const TokenAt* tokens, const float* queries, int query_stride, AttentionRule rule, float2* scales,
                  float* parts, float* out) {
  constexpr int kEach = Format::kEach, kWidth = kLanes * kEach;  // elements of a step
  constexpr int kAtOnce = kThreads / kLanes, kLoads = kChunk / kAtOnce,
                kAhead = kLoads < kInFlight ? kLoads : kInFlight;
  constexpr bool kEarly = kLanes < kWarp;  // large heads have no registers for that
  // Elements of a step that a thread adds up in the end.
  constexpr int kOwn = kWidth > kThreads ? kWidth / kThreads : 1;
  // Element e of piece c is at e * kPitch + c, so that a warp meets all banks whether its lanes are pieces or elements.
  constexpr int kPitch = kThreads + kWarp / kEach;
  KDTW_SHARED(float, query, kEach* kPitch);
  KDTW_SHARED(float, partial, kEach* kPitch);
  KDTW_SHARED(float, scores, kChunk);
  const int heads = rule.heads, lowest = rule.bias.lowest, highest = rule.bias.highest;
  const int h = blockIdx.x % heads, t = blockIdx.x / heads, thread = threadIdx.x, lane = lane_id();
  const int first = thread / kLanes, piece = thread % kLanes;
  float asked[kSteps * kOwn];
#pragma unroll
  for (int i = 0; i < kSteps * kOwn; ++i) {
    const int d = thread + i * kThreads;
    asked[i] = d < head_size ? queries[static_cast<size_t>(t) * query_stride + h * head_size + d] : 0.0f;
  }
  const TokenAt token = tokens[t];
  const Span seen_keys = span_of(token, rule.window);
  const size_t plane = static_cast<size_t>(token.row) * key_heads + h / (heads / key_heads);
  const size_t row = plane * capacity * pieces + first * pieces + piece;
  keys += row, values += row;
  const float* table = rule.bias.table;
  if (table != nullptr) table += static_cast<size_t>(h) * (lowest + highest + 1) + lowest;
  // A thread's piece of key or value first + i kAtOnce of the chunk; zeros where there is none.
  const auto load = [&](const uint4* from, int start, int step, int i) {
    const bool there = start + first + i * kAtOnce < seen_keys.end && step * kLanes + piece < pieces;
    return there ? from[static_cast<size_t>(start + i * kAtOnce) * pieces + step * kLanes] : make_uint4(0, 0, 0, 0);
  };
  const auto bias_of = [&](int key) {
    return table != nullptr && key < seen_keys.end ? table[max(-lowest, min(highest, key - token.position))] : 0.0f;
  };
  const auto scored = [&](int key, float score, float of_bias) {
    if (key < seen_keys.first || key >= seen_keys.end) return -INFINITY;
    score = score * rule.scale;
    return (rule.cap > 0.0f ? soft_cap(score, rule.cap) : score) + of_bias;
  };

  const int stride = static_cast<int>(gridDim.y) * kChunk;
  int start = seen_keys.begin + static_cast<int>(blockIdx.y) * kChunk;
  uint4 next_keys[kAhead];
#pragma unroll
  for (int i = 0; kEarly && i < kAhead; ++i) next_keys[i] = load(keys, start, 0, i);
  float near = 0.0f, far = 0.0f;
  if (kEarly) near = bias_of(start + lane), far = bias_of(start + kWarp + lane);
#pragma unroll
  for (int i = 0; i < kSteps * kOwn; ++i) {
    const int d = thread + i * kThreads;
    if (d < kSteps * kWidth) query[d % kEach * kPitch + d / kEach] = asked[i];
  }
  __syncthreads();

  Seen seen;
  float own[kSteps * kOwn] = {};
  for (; start < seen_keys.end; start += stride) {
    uint4 next_values[kAhead];
#pragma unroll
    for (int i = 0; kEarly && i < kAhead; ++i) next_values[i] = load(values, start, 0, i);
    float score[kLoads] = {};
#pragma unroll 1  // keeps fewer loads of large heads in registers
    for (int s = 0; s < kSteps; ++s) {
      float asks[kEach];
#pragma unroll
      for (int e = 0; e < kEach; ++e) asks[e] = query[e * kPitch + s * kLanes + piece];
#pragma unroll
      for (int begin = 0; begin < kLoads; begin += kAhead) {
        if (!kEarly || begin > 0) {
#pragma unroll
          for (int i = 0; i < kAhead; ++i) next_keys[i] = load(keys, start, s, begin + i);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          float key[kEach];
          Format::expand(next_keys[i], key);
#pragma unroll
          for (int e = 0; e < kEach; ++e) score[begin + i] = fmaf(asks[e], key[e], score[begin + i]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kLoads; ++i) {
#pragma unroll
      for (int offset = kLanes / 2; offset > 0; offset /= 2) score[i] += __shfl_xor_sync(kAllLanes, score[i], offset);
      if (piece == 0) scores[first + i * kAtOnce] = score[i];
    }
    __syncthreads();
    // Every warp computes the chunk's maximum and sum itself, from the same numbers in the same order: that needs no
    // barrier to hand them around. A lane has the weights of two keys.
    if (!kEarly) near = bias_of(start + lane), far = bias_of(start + kWarp + lane);
    near = scored(start + lane, scores[lane], near);
    far = scored(start + kWarp + lane, scores[kWarp + lane], far);
    const float top = warp_reduce<Largest>(fmaxf(near, far));
    const float weights[2] = {expf(near - top), expf(far - top)};
    const Seen of_chunk{top, warp_reduce<Sum>(weights[0] + weights[1])};
    if (kEarly && start + stride < seen_keys.end) {
#pragma unroll
      for (int i = 0; i < kAhead; ++i) next_keys[i] = load(keys, start + stride, 0, i);
      near = bias_of(start + stride + lane), far = bias_of(start + stride + kWarp + lane);
    }
    float shrink, grow;
    join(seen, of_chunk, shrink, grow);
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
      float sums[kEach] = {};
#pragma unroll
      for (int begin = 0; begin < kLoads; begin += kAhead) {
        if (!kEarly || begin > 0) {
#pragma unroll
          for (int i = 0; i < kAhead; ++i) next_values[i] = load(values, start, s, begin + i);
        }
#pragma unroll
        for (int i = 0; i < kAhead; ++i) {
          const int key = (begin + i) * kAtOnce;
          const float weight = __shfl_sync(kAllLanes, weights[key / kWarp], key % kWarp + first);
          float value[kEach];
          Format::expand(next_values[i], value);
#pragma unroll
          for (int e = 0; e < kEach; ++e) sums[e] = fmaf(weight, value[e], sums[e]);
        }
      }
      if (s > 0) __syncthreads();
#pragma unroll
      for (int e = 0; e < kEach; ++e) partial[e * kPitch + thread] = sums[e];
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const int d = thread + i * kThreads;
        if (d >= kWidth) break;
        const float* from = partial + d % kEach * kPitch + d / kEach;
        float sum = from[0];
#pragma unroll
        for (int g = 1; g < kAtOnce; ++g) sum += from[g * kLanes];
        own[s * kOwn + i] = own[s * kOwn + i] * shrink + sum * grow;
      }
    }
    if (scales != nullptr) {
      const size_t place = static_cast<size_t>(blockIdx.x) * ((capacity + kChunk - 1) / kChunk) + start / kChunk;
      if (thread == 0) scales[place] = make_float2(seen.largest, seen.total);
      seen = Seen();
#pragma unroll
      for (int i = 0; i < kSteps * kOwn; ++i) {
        const int d = thread + i * kThreads;
        if (d < head_size) parts[place * head_size + d] = own[i];
        own[i] = 0.0f;
      }
    }
  }

  if (scales != nullptr) return;
#pragma unroll
  for (int i = 0; i < kSteps * kOwn; ++i) {
    const int d = thread + i * kThreads;
    if (d < head_size)
      out[static_cast<size_t>(blockIdx.x) * head_size + d] = token.length > 0 ? own[i] / seen.total : 0.0f;
  }
}

// Adds up the chunks of one head of one query, as a block does that reads all of them; block: token * heads + head.
__global__ void __launch_bounds__(kThreads)
    attend_join_kernel(const float2* scales, const float* parts, int heads, int head_size, int chunks, int window,
                       const TokenAt* tokens, float* out) {
  const Span seen_keys = span_of(tokens[blockIdx.x / heads], window);
  const int begin = seen_keys.begin / kChunk, end = (seen_keys.end + kChunk - 1) / kChunk;
  scales += static_cast<size_t>(blockIdx.x) * chunks;
  parts += static_cast<size_t>(blockIdx.x) * chunks * head_size;
  for (int d = threadIdx.x; d < head_size; d += blockDim.x) {
    Seen seen;
    float own = 0.0f;
#pragma unroll 8
    for (int c = begin; c < end; ++c) {
      const float2 scale = scales[c];
      const float part = parts[static_cast<size_t>(c) * head_size + d];
      float shrink, grow;
      join(seen, {scale.x, scale.y}, shrink, grow);
      own = own * shrink + part * grow;
    }
    out[static_cast<size_t>(blockIdx.x) * head_size + d] = end > 0 ? own / seen.total : 0.0f;
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

int32_t copy(const KdtwCache* cache, int32_t from, int32_t to, int32_t positions, void* stream) {
  return with_format(cache->format, [&](auto format) {
    const size_t each = cache->stride / decltype(format)::kEach, pieces = each * positions;
    KDTW_LAUNCH(copy_kernel, dim3(static_cast<unsigned>((pieces + kBlock - 1) / kBlock), cache->heads), dim3(kBlock),
                stream, static_cast<uint4*>(cache->keys), static_cast<uint4*>(cache->values), cache->heads,
                each * cache->capacity, from, to, pieces);
  });
}

int32_t attend(const KdtwCache* cache, const TokenAt* tokens, int32_t count, const float* queries, int32_t query_stride,
               const AttentionRule* rule, float* scratch, float* out, void* stream) {
  const int blocks = count * rule->heads;
  const bool apart = kdtw_attention_scratch(cache, count, rule->heads) > 0;
  const int chunks = apart ? ceil_divide(cache->capacity, kChunk) : 1;
  auto* scales = apart ? reinterpret_cast<float2*>(scratch) : nullptr;
  const int apart_blocks = min(chunks, max(1, kMostBlocks / max(1, blocks)));
  float* parts = apart ? scratch + 2 * static_cast<size_t>(blocks) * chunks : nullptr;
  return with_format(cache->format, [&](auto format) {
    using Format = decltype(format);
    const int pieces = cache->stride / Format::kEach;
    const auto launch = [&](auto lanes, auto steps) {
      KDTW_LAUNCH((attend_kernel<Format, decltype(lanes)::value, decltype(steps)::value>), dim3(blocks, apart_blocks),
                  dim3(kThreads), stream, static_cast<const uint4*>(cache->keys),
                  static_cast<const uint4*>(cache->values), cache->heads, cache->head_size, pieces, cache->capacity,
                  tokens, queries, query_stride, *rule, scales, parts, out);
    };
    if (pieces <= 8)
      launch(Number<8>{}, Number<1>{});
    else if (pieces <= 16)
      launch(Number<16>{}, Number<1>{});
    else if (pieces <= 32)
      launch(Number<32>{}, Number<1>{});
    else
      launch(Number<32>{}, Number<4>{});
    if (apart)
      KDTW_LAUNCH(attend_join_kernel, dim3(blocks), dim3(min(kThreads, ceil_divide(cache->head_size, kWarp) * kWarp)),
                  stream, scales, parts, rule->heads, cache->head_size, chunks, rule->window, tokens, out);
  });
}

}  // namespace kdtw::cuda
