// Memory of the CPU backend: zeroed, on cache-line boundaries, and not touched until it is used, so that a
// cache of long capacity costs only what is written.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/error.h"

namespace kdtw::cpu {

inline constexpr int kLine = 64;  // bytes of a cache line

inline std::shared_ptr<void> zeroed(size_t bytes) {
  void* raw = std::calloc(bytes + kLine, 1);
  if (raw == nullptr) throw OutOfMemory(bytes);
  return std::shared_ptr<void>(raw, std::free);
}

// The first cache line of what zeroed() gave.
inline float* aligned(const std::shared_ptr<void>& memory) {
  const auto address = reinterpret_cast<uintptr_t>(memory.get());
  return reinterpret_cast<float*>((address + kLine - 1) / kLine * kLine);
}

}  // namespace kdtw::cpu
