#include "backend/cpu/key_value_cache.h"

#include <cstring>

#include "backend/cpu/memory.h"
#include "core/bf16.h"

namespace kdtw::cpu {
namespace {

int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

}  // namespace

BlockedCache::BlockedCache(int rows, int heads, int head_size, int capacity, DType dtype)
    : dtype(dtype), heads(heads), head_size(head_size), value_stride(round_up(head_size, 16)), rows_(rows) {
  numbers_ = dtype == DType::kBf16 ? 2 : 1;
  const size_t positions = round_up(capacity, kKeyBlock);
  key_stride_ = round_up(head_size, numbers_) / numbers_;
  key_plane_ = positions * key_stride_;
  value_plane_ = positions / numbers_ * value_stride;
  memory_ = zeroed(bytes());
  keys_ = aligned(memory_);
  values_ = keys_ + plane(rows, 0) * key_plane_;
}

void BlockedCache::store(std::span<const TokenAt> tokens, const float* keys, const float* values, int stride, int first,
                         int last) {
  for (const auto& [row, position, length] : tokens) {
    const size_t block = position / kKeyBlock, slot = position % kKeyBlock;
    for (int h = first; h < last; ++h) {
      const float* key = keys + h * head_size;
      const float* value = values + h * head_size;
      float* key_plane = keys_ + plane(row, h) * key_plane_;
      float* value_plane = values_ + plane(row, h) * value_plane_;
      if (dtype == DType::kFp32) {
        float* to = key_plane + block * kKeyBlock * head_size + slot;
        for (int d = 0; d < head_size; ++d) to[d * kKeyBlock] = key[d];
        std::memcpy(value_plane + static_cast<size_t>(position) * value_stride, value, head_size * sizeof(float));
      } else {
        auto* to = reinterpret_cast<uint16_t*>(key_plane + (block * ((head_size + 1) / 2) * kKeyBlock + slot));
        for (int d = 0; d < head_size; ++d) to[d / 2 * (2 * kKeyBlock) + d % 2] = to_bf16(key[d]);
        to = reinterpret_cast<uint16_t*>(value_plane + static_cast<size_t>(position / 2) * value_stride) + position % 2;
        for (int d = 0; d < head_size; ++d) to[2 * d] = to_bf16(value[d]);
      }
    }
    keys += stride, values += stride;
  }
}

void BlockedCache::copy(int from, int to, int positions, int first, int last) {
  const size_t key_places = round_up(positions, kKeyBlock) * key_stride_;
  const size_t value_places = static_cast<size_t>(round_up(positions, numbers_) / numbers_) * value_stride;
  for (int h = first; h < last; ++h) {
    const size_t source = plane(from, h), target = plane(to, h);
    std::memcpy(keys_ + target * key_plane_, keys_ + source * key_plane_, key_places * sizeof(float));
    std::memcpy(values_ + target * value_plane_, values_ + source * value_plane_, value_places * sizeof(float));
  }
}

}  // namespace kdtw::cpu
