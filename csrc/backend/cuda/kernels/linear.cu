// Products with a weight [N, K] for a few tokens at a time: reading the weight is what costs, so a block keeps a tile
// of the tokens in shared memory and its warps stream rows of the weight past it, 16 bytes a lane and load.
//
// The order of every sum is fixed by K alone: lane l adds the 16-byte pieces l, l + 32, ... of a row in ascending
// order, then the lanes are added in a tree over lane distances 16, 8, 4, 2, 1. How many tokens share a pass, or a
// warp, changes no bit.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

constexpr int kTileBytes = 32768;  // most shared memory for tokens

// Of `value`, each lane's for kCount tokens, the lanes' sum of one token: lane l gets that of token l / (32 / kCount).
// Half of the tokens go to the other lane with every distance, and the tree of each is that of a warp_reduce.
template <int kDistance = kWarp / 2, typename T, int kCount>
__device__ __forceinline__ T sum_lanes(const T (&value)[kCount]) {
  if constexpr (kDistance == 0) {
    return value[0];
  } else {
    constexpr int kHalf = kCount > 1 ? kCount / 2 : 1;
    const bool upper = (lane_id() & kDistance) != 0;
    T sum[kHalf];
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
      const T send = kCount == 1 || upper ? value[i] : value[i + kCount / 2];
      const T keep = kCount == 1 || !upper ? value[i] : value[i + kCount / 2];
      sum[i] = keep + __shfl_xor_sync(kAllLanes, send, kDistance);
    }
    return sum_lanes<kDistance / 2>(sum);
  }
}

// The rows of the weight that a warp computes: kRows neighbours, or gates and what they gate in turn.
struct Rows {
  int first, outputs, half;  // half: N/2 when gated, else 0

  __device__ __forceinline__ int row(int r) const {
    const int row = half > 0 ? r % 2 * half + first + r / 2 : first + r;
    return row < outputs ? row : outputs - 1;
  }
};

template <int kRows>
__device__ __forceinline__ Rows rows_of_warp(int outputs, KdtwEpilogue epilogue) {
  const int index = static_cast<int>(blockIdx.x) * kWarps + warp_id();
  if (epilogue == kKdtwGatedGelu) return {index * (kRows / 2), outputs, outputs / 2};
  return {index * kRows, outputs, 0};
}

// Writes one token's y of the warp's rows.
template <int kRows>
__device__ __forceinline__ void finish(const float (&y)[kRows], const Rows& rows, KdtwEpilogue epilogue, float* out) {
  if (epilogue == kKdtwGatedGelu) {
#pragma unroll
    for (int r = 0; r < kRows; r += 2)
      if (rows.first + r / 2 < rows.half) out[rows.first + r / 2] = gelu(y[r]) * y[r + 1];
    return;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    if (rows.first + r >= rows.outputs) break;
    float* to = out + rows.first + r;
    if (epilogue == kKdtwStore) *to = y[r];
    if (epilogue == kKdtwAdd) *to = *to + y[r];
    if (epilogue == kKdtwRelu) *to = fmaxf(y[r], 0.0f);
  }
}

// Pieces of a row whose loads a lane has under way: where few sums are made of a piece, two, to hide the memory's
// latency.
template <int kSums>
constexpr int kPiecesAhead = kSums <= 8 ? 2 : 1;

// A tile of tokens in shared memory, cut so that lanes that read neighbouring 16-byte pieces of a weight's row read
// neighbouring float4 of x: piece c's floats 4p..4p+3 lie in plane p at c. Planes begin 16 banks apart.
template <typename Format, int kTokens>
struct Tile {
  static constexpr int kPlanes = Format::kEach / 4;
  static constexpr int kInputs = kTileBytes / 4 / kTokens < 2048 ? kTileBytes / 4 / kTokens : 2048;
  static constexpr int kPlane = kInputs / kPlanes + (kPlanes > 1 ? 16 : 0);  // floats
  static constexpr int kFloats = kTokens * kPlanes * kPlane;
  static_assert(kInputs % kBlock == 0 && kInputs % (kWarp * Format::kEach) == 0);

  static __device__ __forceinline__ int place(int t, int k) {
    return (t * kPlanes + k % Format::kEach / 4) * kPlane + k / Format::kEach * 4 + k % 4;
  }
};

template <typename Format, int kTokens, int kRows>
__global__ void __launch_bounds__(kBlock)
    linear_kernel(const uint4* weight, int outputs, int inputs, int pieces, const float* x, const float* norm_scale,
                  float epsilon, int tokens, KdtwEpilogue epilogue, int out_stride, float* out) {
  using X = Tile<Format, kTokens>;
  constexpr int kEach = Format::kEach, kAhead = kPiecesAhead<kTokens * kRows>;
  KDTW_SHARED(float, tile, X::kFloats);
  KDTW_SHARED(float, squares_of_warps, kWarps* kTokens);
  const int lane = lane_id(), first_token = static_cast<int>(blockIdx.y) * kTokens;
  const Rows rows = rows_of_warp<kRows>(outputs, epilogue);
  x += static_cast<size_t>(first_token) * inputs;
  float sums[kRows][kTokens], squares[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    squares[t] = 0.0f;
#pragma unroll
    for (int r = 0; r < kRows; ++r) sums[r][t] = 0.0f;
  }
  for (int start = 0; start < pieces * kEach; start += X::kInputs) {
    const int size = min(X::kInputs, pieces * kEach - start);
    if (start > 0) __syncthreads();
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      for (int k = threadIdx.x; k < size; k += kBlock) {
        float value = 0.0f;
        if (first_token + t < tokens && start + k < inputs) {
          value = x[static_cast<size_t>(t) * inputs + start + k];
          if (norm_scale != nullptr) {
            squares[t] = fmaf(value, value, squares[t]);
            value = value * norm_scale[start + k];
          }
        }
        tile[X::place(t, k)] = value;
      }
    }
    __syncthreads();
#pragma unroll kAhead
    for (int c = lane; c < size / kEach; c += kWarp) {
      uint4 bits[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) bits[r] = weight[static_cast<size_t>(rows.row(r)) * pieces + start / kEach + c];
      float w[kRows][kEach];
#pragma unroll
      for (int r = 0; r < kRows; ++r) Format::expand(bits[r], w[r]);
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
#pragma unroll
        for (int p = 0; p < X::kPlanes; ++p) {
          const float4 v = *reinterpret_cast<const float4*>(tile + (t * X::kPlanes + p) * X::kPlane + 4 * c);
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
            sums[r][t] = fmaf(w[r][4 * p], v.x, sums[r][t]);
            sums[r][t] = fmaf(w[r][4 * p + 1], v.y, sums[r][t]);
            sums[r][t] = fmaf(w[r][4 * p + 2], v.z, sums[r][t]);
            sums[r][t] = fmaf(w[r][4 * p + 3], v.w, sums[r][t]);
          }
        }
      }
    }
  }
  constexpr int kLanesEach = kWarp / kTokens;  // that hold a token's sums
  const int t = lane / kLanesEach;
  const bool writes = lane % kLanesEach == 0 && first_token + t < tokens;
  float y[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) y[r] = sum_lanes(sums[r]);
  if (norm_scale != nullptr) {
    const float square = sum_lanes(squares);
    if (lane % kLanesEach == 0) squares_of_warps[warp_id() * kTokens + t] = square;
    __syncthreads();
    float all = squares_of_warps[t];
#pragma unroll
    for (int w = 1; w < kWarps; ++w) all += squares_of_warps[w * kTokens + t];
    const float inverse = 1.0f / sqrtf(all / static_cast<float>(inputs) + epsilon);
#pragma unroll
    for (int r = 0; r < kRows; ++r) y[r] = y[r] * inverse;
  }
  if (writes) finish(y, rows, epilogue, out + static_cast<size_t>(first_token + t) * out_stride);
}

// Sums of products of bytes are exact. The order of a float's making is that of the CPU: sum * (scale of the token *
// scale of the output).
template <int kTokens, int kRows>
__global__ void __launch_bounds__(kBlock)
    linear_int8_kernel(const int4* weight, const float* scales, int outputs, int pieces, const int4* x,
                       const float* x_scales, int tokens, KdtwEpilogue epilogue, int out_stride, float* out) {
  constexpr int kPieces = kTileBytes / 16 / kTokens < 128 ? kTileBytes / 16 / kTokens : 128;
  constexpr int kAhead = kPiecesAhead<kTokens * kRows>;
  KDTW_SHARED(int4, tile, kTokens * kPieces);
  const int lane = lane_id(), first_token = static_cast<int>(blockIdx.y) * kTokens;
  const Rows rows = rows_of_warp<kRows>(outputs, epilogue);
  int sums[kRows][kTokens];
#pragma unroll
  for (int r = 0; r < kRows; ++r)
#pragma unroll
    for (int t = 0; t < kTokens; ++t) sums[r][t] = 0;
  for (int start = 0; start < pieces; start += kPieces) {
    const int size = min(kPieces, pieces - start);
    if (start > 0) __syncthreads();
#pragma unroll
    for (int t = 0; t < kTokens; ++t)
#pragma unroll 1
      for (int c = threadIdx.x; c < size; c += kBlock)
        tile[t * kPieces + c] = first_token + t < tokens ? x[static_cast<size_t>(first_token + t) * pieces + start + c]
                                                         : make_int4(0, 0, 0, 0);
    __syncthreads();
#pragma unroll kAhead
    for (int c = lane; c < size; c += kWarp) {
      int4 w[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) w[r] = weight[static_cast<size_t>(rows.row(r)) * pieces + start + c];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const int4 v = tile[t * kPieces + c];
#pragma unroll
        for (int r = 0; r < kRows; ++r)
          sums[r][t] = __dp4a(w[r].x, v.x, __dp4a(w[r].y, v.y, __dp4a(w[r].z, v.z, __dp4a(w[r].w, v.w, sums[r][t]))));
      }
    }
  }
  constexpr int kLanesEach = kWarp / kTokens;
  const int t = lane / kLanesEach;
  const bool writes = lane % kLanesEach == 0 && first_token + t < tokens;
  const float scale = writes ? x_scales[first_token + t] : 0.0f;
  float y[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) y[r] = static_cast<float>(sum_lanes(sums[r])) * (scale * scales[rows.row(r)]);
  if (writes) finish(y, rows, epilogue, out + static_cast<size_t>(first_token + t) * out_stride);
}

dim3 grid(const KdtwWeight& weight, KdtwEpilogue epilogue, int tokens, int at_once, int rows) {
  const int outputs = epilogue == kKdtwGatedGelu ? weight.outputs / 2 : weight.outputs;
  const int each = epilogue == kKdtwGatedGelu ? rows / 2 : rows;
  return dim3(ceil_divide(outputs, kWarps * each), ceil_divide(tokens, at_once));
}

int width(const KdtwWeight& weight, KdtwEpilogue epilogue) {
  return epilogue == kKdtwGatedGelu ? weight.outputs / 2 : weight.outputs;
}

// Calls launch with the tokens and the rows of the weight that a warp takes, as constants.
template <int kTokens, int kRows>
struct Shape {
  static constexpr int kTokensEach = kTokens, kRowsEach = kRows;
};
template <typename Launch>
void with_shape(int tokens, Launch&& launch) {
  if (tokens <= 1) return launch(Shape<1, 2>{});
  if (tokens <= 2) return launch(Shape<2, 2>{});
  if (tokens <= 4) return launch(Shape<4, 2>{});
  if (tokens <= 8) return launch(Shape<8, 4>{});
  launch(Shape<16, 2>{});
}

}  // namespace

int32_t linear(const KdtwWeight* weight, const float* x, const float* norm_scale, float epsilon, int32_t tokens,
               KdtwEpilogue epilogue, float* out, void* stream) {
  const auto launch = [&](auto format) {
    with_shape(tokens, [&](auto shape) {
      using Format = decltype(format);
      using Shape = decltype(shape);
      KDTW_LAUNCH((linear_kernel<Format, Shape::kTokensEach, Shape::kRowsEach>),
                  grid(*weight, epilogue, tokens, Shape::kTokensEach, Shape::kRowsEach), dim3(kBlock), 0,
                  static_cast<cudaStream_t>(stream), static_cast<const uint4*>(weight->data), weight->outputs,
                  weight->inputs, weight->stride / Format::kEach, x, norm_scale, epsilon, tokens, epilogue,
                  width(*weight, epilogue), out);
    });
  };
  if (weight->format == kKdtwFp32) launch(Fp32{});
  if (weight->format == kKdtwFp16) launch(Fp16{});
  if (weight->format == kKdtwBf16) launch(Bf16{});
  if (weight->scales != nullptr) return cudaErrorInvalidValue;
  return cudaGetLastError();
}

int32_t linear_int8(const KdtwWeight* weight, const int8_t* x, const float* x_scales, int32_t tokens,
                    KdtwEpilogue epilogue, float* out, void* stream) {
  if (weight->format != kKdtwInt8) return cudaErrorInvalidValue;
  with_shape(tokens, [&](auto shape) {
    using Shape = decltype(shape);
    KDTW_LAUNCH((linear_int8_kernel<Shape::kTokensEach, Shape::kRowsEach>),
                grid(*weight, epilogue, tokens, Shape::kTokensEach, Shape::kRowsEach), dim3(kBlock), 0,
                static_cast<cudaStream_t>(stream), static_cast<const int4*>(weight->data), weight->scales,
                weight->outputs, weight->stride / 16, reinterpret_cast<const int4*>(x), x_scales, tokens, epilogue,
                width(*weight, epilogue), out);
  });
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
