// Weights as the CPU's products read them, the tokens they are multiplied with, and the product of the two.
// What differs by instruction set is one entry of the kernel table (gemm_body.h).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <vector>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"

namespace kdtw::cpu {

// A weight [N, K] cut into panels of kPanel outputs; a panel is one stream of K rows of its kPanel outputs'
// values at one input. The outputs of the last panel that do not exist are zero.
class PackedWeight : public Weight {
 public:
  PackedWeight(int outputs, int inputs, DType dtype);

  size_t bytes() const override { return panels_ * panel_bytes_; }
  DType dtype() const { return dtype_; }
  int panels() const { return panels_; }
  size_t panel_bytes() const { return panel_bytes_; }
  const std::byte* panel(int p) const { return data_ + p * panel_bytes_; }

  // Packs row-major matrices [part_outputs[i], K], stacked along the outputs.
  void pack(std::span<const float* const> parts, std::span<const int> part_outputs, int threads);
  // The K values of one output, as fp32.
  void unpack(int output, float* to) const;

 private:
  DType dtype_;
  int panels_;
  size_t panel_bytes_;
  std::shared_ptr<void> memory_;
  std::byte* data_;
};

// The tokens [T, K] of a pass, made ready for products with weights of one number format: cut into blocks of nearly
// equal numbers of rows, each block [K][rows], so that a kernel reads one stream. One token is read where it lies.
// Where the cuts fall changes no result.
class Operand {
 public:
  void prepare(const Kernels& kernels, const PackedWeight& weight, const float* x, int tokens, int threads);

  int tokens() const { return tokens_; }
  int blocks() const { return blocks_; }
  // The first token of a block; of block blocks(): the number of tokens.
  int first(int block) const { return static_cast<int>(static_cast<long>(tokens_) * block / blocks_); }
  const void* block(int b) const { return data_ + static_cast<size_t>(first(b)) * stride_; }

 private:
  int tokens_ = 0, blocks_ = 1;
  size_t stride_ = 0;  // bytes of a token
  const std::byte* data_ = nullptr;
  std::vector<float> memory_;
};

// out[t * out_stride + n] (+)= the product of token t of `x` with output n of the panels [first, last), n counted
// from the first of these panels. Any thread may compute any panels; the bits do not depend on it.
void multiply(const Kernels& kernels, const PackedWeight& weight, const Operand& x, int first, int last, float* out,
              int out_stride, bool accumulate);

}  // namespace kdtw::cpu
