#include "backend/cpu/key_value_cache.h"

#include <cstring>

#include "backend/cpu/memory.h"

namespace kdtw::cpu {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

BlockedCache::BlockedCache(int rows, int heads, int head_size, int capacity)
    : heads(heads),
      head_size(head_size),
      value_stride(round_up(head_size, 16)),
      capacity(round_up(capacity, kKeyBlock)),
      rows_(rows),
      memory_(zeroed(bytes())),
      keys_(aligned(memory_)),
      values_(keys_ + plane(rows, 0) * head_size) {}

size_t BlockedCache::bytes() const { return sizeof(float) * plane(rows_, 0) * (head_size + value_stride); }

void BlockedCache::store(std::span<const TokenAt> tokens, const float* keys, const float* values, int stride, int first,
                         int last) {
  for (const auto& [row, position, length] : tokens) {
    const int slot = position % kKeyBlock;
    for (int h = first; h < last; ++h) {
      const float* key = keys + h * head_size;
      float* block = keys_ + plane(row, h) * head_size + static_cast<size_t>(position - slot) * head_size + slot;
      for (int d = 0; d < head_size; ++d) block[d * kKeyBlock] = key[d];
      std::memcpy(values_ + (plane(row, h) + position) * value_stride, values + h * head_size,
                  head_size * sizeof(float));
    }
    keys += stride, values += stride;
  }
}

}  // namespace kdtw::cpu
