// Keys and values as the CPU's attention reads them (Attention in kernels.h).
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "backend/cpu/kernels.h"
#include "backend/operations.h"

namespace kdtw::cpu {

// Numbers lie in places of 4 bytes: one fp32 number each, or P = 2 bf16 numbers, rounded to nearest even. Keys are in
// blocks of kKeyBlock positions, [R][H][capacity / kKeyBlock][D / P rounded up][kKeyBlock] places of P successive d, so
// that a vector holds one d of many keys; values are in rows of P successive positions, [R][H][capacity / P][D rounded
// up to 16].
class BlockedCache : public KeyValueCache {
 public:
  BlockedCache(int rows, int heads, int head_size, int capacity, DType dtype);

  size_t bytes() const override { return sizeof(float) * rows_ * heads * (key_plane_ + value_plane_); }
  // From key `first` on, a multiple of kKeyBlock.
  const float* keys(int row, int head, int first) const {
    return keys_ + plane(row, head) * key_plane_ + first * key_stride_;
  }
  const float* values(int row, int head, int first) const {
    return values_ + plane(row, head) * value_plane_ + static_cast<size_t>(first / numbers_) * value_stride;
  }

  // Puts the keys and values [T, H*D] of the heads [first, last) where the tokens stand.
  void store(std::span<const TokenAt> tokens, const float* keys, const float* values, int stride, int first, int last);

  // Copies the first positions of row `from` to row `to`, of the heads [first, last).
  void copy(int from, int to, int positions, int first, int last);

  const DType dtype;
  const int heads, head_size, value_stride;

 private:
  size_t plane(int row, int head) const { return static_cast<size_t>(row) * heads + head; }

  int rows_;
  int numbers_;                     // P
  size_t key_stride_;               // places of one key's d's
  size_t key_plane_, value_plane_;  // places of one head of one row
  std::shared_ptr<void> memory_;
  float* keys_;
  float* values_;
};

}  // namespace kdtw::cpu
