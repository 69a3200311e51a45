// Keys and values as the CPU's attention reads them (Attention in kernels.h).
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "backend/backend.h"
#include "backend/cpu/kernels.h"

namespace kdtw::cpu {

// Keys lie in blocks of kKeyBlock positions, [R][H][capacity / kKeyBlock][D][kKeyBlock], so that a vector holds one d
// of many keys; values lie in rows, [R][H][capacity][D rounded up to 16].
class BlockedCache : public KeyValueCache {
 public:
  BlockedCache(int rows, int heads, int head_size, int capacity);

  size_t bytes() const override;
  const float* keys(int row, int head) const { return keys_ + plane(row, head) * head_size; }
  const float* values(int row, int head) const { return values_ + plane(row, head) * value_stride; }

  // Puts the keys and values [T, H*D] of the heads [first, last) where the tokens stand.
  void store(std::span<const TokenAt> tokens, const float* keys, const float* values, int stride, int first, int last);

  const int heads, head_size, value_stride, capacity;

 private:
  size_t plane(int row, int head) const { return (static_cast<size_t>(row) * heads + head) * capacity; }

  int rows_;
  std::shared_ptr<void> memory_;
  float* keys_;
  float* values_;
};

}  // namespace kdtw::cpu
