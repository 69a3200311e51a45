// Memory of the CPU backend: zeroed, on cache-line boundaries, and not touched until it is used, so that a
// cache of long capacity costs only what is written.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdlib>
#include <memory>

#include "core/error.h"

namespace kdtw::cpu {

inline constexpr int kLine = 64;  // bytes of a cache line

inline std::shared_ptr<void> zeroed(size_t bytes) {
  // The system may refuse to promise more memory than there is, even if it is never touched: for large pieces it is
  // told that this is no promise. (malloc maps pieces of this size, too.)
  if (bytes >= size_t{32} << 20) {
    void* raw = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) throw OutOfMemory(bytes);
    return std::shared_ptr<void>(raw, [bytes](void* mapped) { munmap(mapped, bytes); });
  }
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
