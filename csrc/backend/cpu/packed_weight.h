// Weights as the CPU's products read them, the tokens they are multiplied with, and the product of the two.
// What differs by instruction set is one entry of the kernel table (gemm_body.h, gemm_int8_body.h).
#pragma once

#include <cstddef>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/cpu/thread_pool.h"
#include "backend/operations.h"

namespace kdtw::cpu {

// To be raised whenever the layout below changes: packed weights are also kept in files.
inline constexpr int kPackedLayout = 1;

// A weight [N, K] cut into panels of kPanel outputs, a panel being one stream of rows of kPanelRow bytes. A row holds,
// for all outputs of the panel, as many consecutive inputs as fit:
//
//   fp32  [K][32]
//   bf16  [K/2][32][2]   rounded to nearest even; K padded to even
//   int8  [K/4][32][4]   K padded to kChunk; then the outputs' scales, fp32 [32], and the sums of their weights, int32
//   [32]
//
// int8 is symmetric per output: weight = scale * q with q in -127..127 and scale = largest magnitude / 127 (NaN when a
// weight is not finite). Padding is zero. The layout is the same at every SIMD level, and begins on a cache line.
class PackedWeight : public Weight {
 public:
  // Reads a blob that pack() made.
  PackedWeight(int outputs, int inputs, DType dtype, Blob blob);
  // Packs row-major fp32 matrices [part_outputs[i], K], stacked along the outputs; `done` hears of each panel's work,
  // in multiply-adds' time, and may throw.
  static std::unique_ptr<PackedWeight> pack(const Kernels& kernels, std::span<const float* const> parts,
                                            std::span<const int> part_outputs, int inputs, DType dtype, int threads,
                                            const std::function<void(const Range&, long work)>& done);

  size_t bytes() const override { return blob_.bytes.size(); }
  Blob blob() const override { return blob_; }
  std::unique_ptr<Weight> first(int count) const override;
  DType dtype() const { return dtype_; }
  int panels() const { return panels_; }
  size_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int p) const { return blob_.bytes.data() + p * panel_bytes_; }

  // int8: of one output.
  float scale(int output) const;
  // The K values of one output, as fp32.
  void unpack(int output, float* to) const;

 private:
  DType dtype_;
  int panels_;
  int rows_;  // of a panel
  size_t panel_bytes_;
  Blob blob_;
};

// The tokens [T, K] of a pass, made ready for products with weights of one number format: cut into blocks of nearly
// equal numbers of rows, so that a kernel reads one stream. Where the cuts fall changes no result.
//
//   fp32, bf16  a block is [K][rows]; one token is read where it lies
//   int8        every token quantised with a scale of its own (Kernels::quantise); a block is [K/kChunk][rows][kChunk]
class Operand {
 public:
  void prepare(const Kernels& kernels, const PackedWeight& weight, const float* x, int tokens, int threads);

  int blocks() const { return blocks_; }
  // The first token of a block; of block blocks(): the number of tokens.
  int first(int block) const { return static_cast<int>(static_cast<long>(tokens_) * block / blocks_); }
  const std::byte* block(int b) const { return data_ + first(b) * token_bytes_; }
  const float* scales(int b) const { return scales_.empty() ? nullptr : scales_.data() + first(b); }

 private:
  int tokens_ = 0, blocks_ = 1;
  size_t token_bytes_ = 0;
  const std::byte* data_ = nullptr;
  std::vector<float> memory_, scales_;
};

// out[t * out_stride + n] (+)= the product of token t of `x` with output n of the panels [first, last), at most kGroup,
// n counted from the first of these panels. Any thread may compute any panels; the bits do not depend on it. `next` is
// the first of the panels whose turn is likely next, which may be fetched already.
void multiply_group(const Kernels& kernels, const PackedWeight& weight, const Operand& x, int first, int last, int next,
                    float* out, int out_stride, bool accumulate);

}  // namespace kdtw::cpu
