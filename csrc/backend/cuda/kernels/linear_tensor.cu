// Products with a weight [N, K] for many tokens at a time, on tensor cores: a block computes 64 tokens by 64 rows of
// the weight, a warp 32 by 32. Weights and tokens are halves with a scale a row, so that neither overflows; sums are
// floats.
//
// 32 of K at a time lie in shared memory as rows of 64 bytes. Of the 8 that one tensor-core step multiplies, member m
// of a group of four lanes holds two, and which two is free where tokens and weight agree. Here it holds two of 8m ..
// 8m + 7, so that one 16-byte load, free of bank conflicts, is a lane's part of a row for four steps.
//
// The order of every sum is fixed by K alone, and a token's sums have nothing of other tokens in them.
#include "backend/cuda/kernels/device_math.h"

namespace kdtw::cuda {
namespace {

constexpr int kTile = 64;                    // tokens of a block, and rows of the weight
constexpr int kWarpTile = 32;                // of a warp
constexpr int kPieces = 4;                   // 16-byte pieces in a row of a tile: 32 of K
constexpr int kThreads = 128;                // 2 x 2 warps
constexpr int kCopied = kThreads / kPieces;  // rows that the block copies at once
constexpr int kCopies = kTile / kCopied;
constexpr int kTokenSteps = kWarpTile / 16, kRowSteps = kWarpTile / 8;

// The rows of the weight in a block's tile. Where the result is gated, a warp's 32 rows are 16 of the gate and then the
// 16 that they gate, so that one thread has both. Beyond the end the last row is read again.
struct Rows {
  int first, outputs, half;  // half: N/2 when gated, else 0

  __device__ __forceinline__ int row(int r) const {
    if (half == 0) return min(first + r, outputs - 1);
    const int output = first + r / kWarpTile * (kWarpTile / 2) + r % (kWarpTile / 2);
    return min(output, half - 1) + (r % kWarpTile < kWarpTile / 2 ? 0 : half);
  }
};

__device__ __forceinline__ unsigned word(const uint4& four, int i) {
  return i == 0 ? four.x : i == 1 ? four.y : i == 2 ? four.z : four.w;
}

// Writes y as the outputs n and n + 1 of a token's `width`. pairs: both may be written with one 8-byte store.
__device__ __forceinline__ void finish(float2 y, int n, int width, bool pairs, const Ending& ending, float* out) {
  const bool adds = ending.epilogue == kKdtwAdd;
  if (pairs) {
    if (n >= width) return;
    auto* to = reinterpret_cast<float2*>(out + n);
    const float2 before = adds ? *to : make_float2(0.0f, 0.0f);
    *to = make_float2(ending.alone(y.x, before.x), ending.alone(y.y, before.y));
    return;
  }
  if (n < width) out[n] = ending.alone(y.x, adds ? out[n] : 0.0f);
  if (n + 1 < width) out[n + 1] = ending.alone(y.y, adds ? out[n + 1] : 0.0f);
}

__global__ void __launch_bounds__(kThreads)
    linear_tensor_kernel(const uint4* weight, const float* scales, int outputs, int pieces, const uint4* x,
                         const float* x_scales, int tokens, Ending ending, int width, float* out) {
  KDTW_SHARED(uint4, x_tiles, 2 * kTile * kPieces);
  KDTW_SHARED(uint4, w_tiles, 2 * kTile * kPieces);
  const bool gated = ending.epilogue == kKdtwGate;
  const int first_token = static_cast<int>(blockIdx.x) * kTile;
  const Rows rows{static_cast<int>(blockIdx.y) * (gated ? kTile / 2 : kTile), outputs, gated ? outputs / 2 : 0};
  const int group = lane_id() / 4, member = lane_id() % 4;
  const int warp_token = warp_id() / 2 * kWarpTile, warp_row = warp_id() % 2 * kWarpTile;

  // The thread's part of a tile: one piece in each of kCopies rows. It is loaded into registers (..._next) while the
  // tile before it is multiplied, and then stored in shared memory.
  const int thread = static_cast<int>(threadIdx.x), copied_row = thread / kPieces, copied_piece = thread % kPieces;
  const uint4 *x_from[kCopies], *w_from[kCopies];
  uint4 x_next[kCopies], w_next[kCopies];
#pragma unroll
  for (int i = 0; i < kCopies; ++i) {
    const int r = copied_row + i * kCopied;
    x_from[i] = x + static_cast<size_t>(min(first_token + r, tokens - 1)) * pieces + copied_piece;
    w_from[i] = weight + static_cast<size_t>(rows.row(r)) * pieces + copied_piece;
    x_next[i] = *x_from[i], w_next[i] = *w_from[i];
  }
  float sums[kTokenSteps][kRowSteps][4];
#pragma unroll
  for (int i = 0; i < kTokenSteps; ++i)
#pragma unroll
    for (int j = 0; j < kRowSteps; ++j)
#pragma unroll
      for (int c = 0; c < 4; ++c) sums[i][j][c] = 0.0f;

  for (int start = 0; start < pieces; start += kPieces) {
    // Two buffers in turn, with one barrier a tile: when a thread stores here, all threads have passed the barrier of
    // the tile before, and so have finished reading this buffer.
    uint4* x_tile = x_tiles + start / kPieces % 2 * kTile * kPieces;
    uint4* w_tile = w_tiles + start / kPieces % 2 * kTile * kPieces;
#pragma unroll
    for (int i = 0; i < kCopies; ++i) {
      x_tile[(copied_row + i * kCopied) * kPieces + copied_piece] = x_next[i];
      w_tile[(copied_row + i * kCopied) * kPieces + copied_piece] = w_next[i];
    }
    __syncthreads();
    if (start + kPieces < pieces) {
#pragma unroll
      for (int i = 0; i < kCopies; ++i) {
        x_next[i] = x_from[i][start + kPieces];
        w_next[i] = w_from[i][start + kPieces];
      }
    }
    uint4 a[kTokenSteps][2], b[kRowSteps];
#pragma unroll
    for (int i = 0; i < kTokenSteps; ++i)
#pragma unroll
      for (int h = 0; h < 2; ++h) a[i][h] = x_tile[(warp_token + 16 * i + 8 * h + group) * kPieces + member];
#pragma unroll
    for (int j = 0; j < kRowSteps; ++j) b[j] = w_tile[(warp_row + 8 * j + group) * kPieces + member];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int i = 0; i < kTokenSteps; ++i) {
        const unsigned of_tokens[2] = {word(a[i][0], step), word(a[i][1], step)};
#pragma unroll
        for (int j = 0; j < kRowSteps; ++j) {
          const unsigned of_weight[1] = {word(b[j], step)};
          KDTW_MMA_16x8x8(sums[i][j], of_tokens, of_weight);
        }
      }
    }
  }

  // Of each step's 16 x 8 sums, a lane has tokens `group` and `group + 8`, and rows 2 member and 2 member + 1.
  const bool pairs = width % 2 == 0 && reinterpret_cast<size_t>(out) % sizeof(float2) == 0;
  const int first_output = rows.first + (gated ? warp_row / 2 : warp_row) + 2 * member;
#pragma unroll
  for (int i = 0; i < kTokenSteps; ++i) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int t = first_token + warp_token + 16 * i + 8 * h + group;
      if (t >= tokens) continue;
      const float scale = x_scales[t];
      float* to = out + static_cast<size_t>(t) * width;
      const auto y = [&](int j) {
        const int r = warp_row + 8 * j + 2 * member, first = rows.row(r), second = rows.row(r + 1);
        return make_float2(ending.output(sums[i][j][2 * h] * scale * scales[first], first),
                           ending.output(sums[i][j][2 * h + 1] * scale * scales[second], second));
      };
#pragma unroll
      for (int j = 0; j < kRowSteps; ++j) {
        if (!gated) {
          finish(y(j), first_output + 8 * j, width, pairs, ending, to);
        } else if (j < kRowSteps / 2) {
          const float2 gate = y(j), value = y(j + kRowSteps / 2);
          finish(make_float2(ending.gated(gate.x, value.x), ending.gated(gate.y, value.y)), first_output + 8 * j, width,
                 pairs, ending, to);
        }
      }
    }
  }
}

}  // namespace

int32_t linear_tensor(const KdtwWeight* weight, const uint16_t* x, const float* x_scales, int32_t tokens,
                      const KdtwEnding* ending, float* out, void* stream) {
  if (weight->format != kKdtwScaledFp16) return cudaErrorInvalidValue;
  const bool gated = ending->epilogue == kKdtwGate;
  const int width = gated ? weight->outputs / 2 : weight->outputs;
  KDTW_LAUNCH(linear_tensor_kernel, dim3(ceil_divide(tokens, kTile), ceil_divide(width, gated ? kTile / 2 : kTile)),
              dim3(kThreads), stream, static_cast<const uint4*>(weight->data), weight->scales, weight->outputs,
              weight->stride / 8, reinterpret_cast<const uint4*>(x), x_scales, tokens, Ending(*weight, *ending), width,
              out);
  return cudaGetLastError();
}

}  // namespace kdtw::cuda
