// Products y = x W^T with a weight W [N, K], for a few tokens at a time. The time goes into reading the weight. So a
// block keeps some of the tokens' inputs (a tile) in shared memory, and each of its warps reads a few rows of the
// weight, 16 bytes a lane at a time, and multiplies them with all of the block's tokens.
//
// The order of every sum depends on K alone: lane l adds up the 16-byte pieces l, l + 32, ... of a row in ascending
// order, then the lanes are added in a tree over the distances 16, 8, 4, 2, 1. So a token gets the same bits however
// many tokens share the pass or the warp.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

constexpr int kTileBytes = 32768;  // most shared memory for tokens

// Sums over the warp's lanes for kCount tokens at once; value[t] is this lane's part of token t. Lane l gets the sum of
// token l / (32 / kCount). At each distance a pair of lanes divides its tokens: each hands half of them to the other
// and keeps the rest. That takes kCount - 1 + log2(32 / kCount) shuffles instead of 5 kCount, and every token is still
// added in the tree of warp_reduce, so the bits are the same.
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

// The rows of the weight that a warp multiplies: neighbours; where the result is gated, in turn a row of the gate (in
// the first half of the weight) and the row that it gates (in the second half). Beyond the end the last row is read
// again.
struct Rows {
  int first, outputs, half;  // half: N/2 when gated, else 0

  __device__ __forceinline__ int row(int r) const {
    const int row = half > 0 ? r % 2 * half + first + r / 2 : first + r;
    return row < outputs ? row : outputs - 1;
  }
};

template <int kRows>
__device__ __forceinline__ Rows rows_of_warp(int outputs, const Ending& ending) {
  const int index = static_cast<int>(blockIdx.x) * kWarps + warp_id();
  if (ending.epilogue == kKdtwGate) return {index * (kRows / 2), outputs, outputs / 2};
  return {index * kRows, outputs, 0};
}

// Writes one token's results y for the warp's rows.
template <int kRows>
__device__ __forceinline__ void finish(const float (&y)[kRows], const Rows& rows, const Ending& ending, float* out) {
  if (rows.half > 0) {
#pragma unroll
    for (int r = 0; r < kRows; r += 2) {
      const int f = rows.first + r / 2;
      if (f < rows.half) out[f] = ending.gated(ending.output(y[r], f), ending.output(y[r + 1], rows.half + f));
    }
    return;
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    const int n = rows.first + r;
    if (n >= rows.outputs) break;
    out[n] = ending.alone(ending.output(y[r], n), ending.epilogue == kKdtwAdd ? out[n] : 0.0f);
  }
}

// How many pieces of a row a lane loads before it uses the first: two where little is computed with a piece, because
// then the memory's latency would show.
template <int kSums>
constexpr int kPiecesAhead = kSums <= 8 ? 2 : 1;

// How a tile of the tokens' inputs lies in shared memory. Lanes that have neighbouring 16-byte pieces of the weight
// read neighbouring float4 here, which is free of bank conflicts. A 16-bit piece has 8 elements, so two float4: the
// first ones of all pieces lie in plane 0, the second ones in plane 1, and the planes begin 16 banks apart.
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

// y = x W^T for fp32, fp16 and bf16 weights; grid: rows of the weight, groups of kTokens tokens. norm_scale: of
// x / rms(x) * norm_scale instead; each block adds up the squares of its tokens while it loads them, and since 1 / rms
// is one factor a token, it multiplies the finished sums.
template <typename Format, int kTokens, int kRows>
__global__ void __launch_bounds__(kBlock)
    linear_kernel(const uint4* weight, int outputs, int inputs, int pieces, const float* x, const float* norm_scale,
                  float epsilon, int tokens, Ending ending, int out_stride, float* out) {
  using X = Tile<Format, kTokens>;
  constexpr int kEach = Format::kEach, kAhead = kPiecesAhead<kTokens * kRows>;
  KDTW_SHARED(float, tile, X::kFloats);
  KDTW_SHARED(float, squares_of_warps, kWarps* kTokens);
  const int lane = lane_id(), first_token = static_cast<int>(blockIdx.y) * kTokens;
  const Rows rows = rows_of_warp<kRows>(outputs, ending);
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
  if (writes) finish(y, rows, ending, out + static_cast<size_t>(first_token + t) * out_stride);
}

// The same for int8 weights and tokens. Sums are exact in int32, and become floats as on the CPU, in the order
// sum * (scale of the token * scale of the output), so that the bits are the CPU's.
template <int kTokens, int kRows>
__global__ void __launch_bounds__(kBlock)
    linear_int8_kernel(const int4* weight, const float* scales, int outputs, int pieces, const int4* x,
                       const float* x_scales, int tokens, Ending ending, int out_stride, float* out) {
  constexpr int kPieces = kTileBytes / 16 / kTokens < 128 ? kTileBytes / 16 / kTokens : 128;
  constexpr int kAhead = kPiecesAhead<kTokens * kRows>;
  KDTW_SHARED(int4, tile, kTokens * kPieces);
  const int lane = lane_id(), first_token = static_cast<int>(blockIdx.y) * kTokens;
  const Rows rows = rows_of_warp<kRows>(outputs, ending);
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
  if (writes) finish(y, rows, ending, out + static_cast<size_t>(first_token + t) * out_stride);
}

int width(const KdtwWeight& weight, const KdtwEnding& ending) {
  return ending.epilogue == kKdtwGate ? weight.outputs / 2 : weight.outputs;
}

// The tokens and the rows of the weight that a warp takes.
template <int kTokens, int kRows>
struct Shape {
  static constexpr int kTokensEach = kTokens, kRowsEach = kRows;

  static dim3 grid(const KdtwWeight& weight, int tokens) {  // gated or not: a warp takes kRows rows of the weight
    return dim3(ceil_divide(weight.outputs, kWarps * kRows), ceil_divide(tokens, kTokens));
  }
};
// Calls launch with the shape for so many tokens.
template <typename Launch>
void with_shape(int tokens, Launch&& launch) {
  if (tokens <= 1) return launch(Shape<1, 2>{});
  if (tokens <= 2) return launch(Shape<2, 2>{});
  if (tokens <= 4) return launch(Shape<4, 2>{});
  if (tokens <= 8) return launch(Shape<8, 4>{});
  launch(Shape<16, 2>{});
}

}  // namespace

int32_t linear(const KdtwWeight* weight, const float* x, const Norm* norm, int32_t tokens, const KdtwEnding* ending,
               float* out, void* stream) {
  if (norm->scale != nullptr && (norm->centred || norm->shift != nullptr)) return cudaErrorInvalidValue;
  return with_format(weight->format, [&](auto format) {
    with_shape(tokens, [&](auto shape) {
      using Format = decltype(format);
      using Shape = decltype(shape);
      KDTW_LAUNCH((linear_kernel<Format, Shape::kTokensEach, Shape::kRowsEach>), Shape::grid(*weight, tokens),
                  dim3(kBlock), stream, static_cast<const uint4*>(weight->data), weight->outputs, weight->inputs,
                  weight->stride / Format::kEach, x, norm->scale, norm->epsilon, tokens, Ending(*weight, *ending),
                  width(*weight, *ending), out);
    });
  });
}

int32_t linear_int8(const KdtwWeight* weight, const int8_t* x, const float* x_scales, int32_t tokens,
                    const KdtwEnding* ending, float* out, void* stream) {
  if (weight->format != kKdtwInt8) return cudaErrorInvalidValue;
  with_shape(tokens, [&](auto shape) {
    using Shape = decltype(shape);
    KDTW_LAUNCH((linear_int8_kernel<Shape::kTokensEach, Shape::kRowsEach>), Shape::grid(*weight, tokens), dim3(kBlock),
                stream, static_cast<const int4*>(weight->data), weight->scales, weight->outputs, weight->stride / 16,
                reinterpret_cast<const int4*>(x), x_scales, tokens, Ending(*weight, *ending), width(*weight, *ending),
                out);
  });
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
