// Device memory: one reserved range of addresses, a gap of 256 bytes after each allocation, every address handed out
// once. Fresh memory is all ones: NaN as float and as half, so that reading it shows.
#include <sys/mman.h>

#include <cstring>
#include <map>
#include <stdexcept>

#include "check.h"
#include "device.h"

namespace simt {
namespace {

constexpr size_t kAlignment = 256, kPage = 4096;
size_t top = kPage;
size_t live_bytes = 0;
std::map<size_t, size_t> live;  // offset -> bytes

}  // namespace

char* heap_base() {
  static char* const base = reserve_addresses(kHeapBytes);
  return base;
}

char* reserve_addresses(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("the simulated device cannot reserve addresses");
  return static_cast<char*>(memory);
}

bool in_heap(const void* p) {
  const char* address = static_cast<const char*>(p);
  return address >= heap_base() && address < heap_base() + kHeapBytes;
}

bool is_device_pointer(const void* p) { return in_heap(p); }

bool allocated(const void* p, size_t bytes) {
  const auto offset = static_cast<size_t>(static_cast<const char*>(p) - heap_base());
  const auto after = live.upper_bound(offset);
  if (after == live.begin()) return false;
  const auto [first, size] = *std::prev(after);
  return offset - first <= size && bytes <= size - (offset - first);
}

size_t heap_live_bytes() { return live_bytes; }

void* heap_allocate(size_t bytes) {
  const size_t offset = (top + kAlignment - 1) / kAlignment * kAlignment;
  if (bytes > kHeapBytes || offset + bytes + kAlignment > kHeapBytes) return nullptr;
  top = offset + bytes + kAlignment;
  live[offset] = bytes;
  live_bytes += bytes;
  ++counters().allocations;
  counters().allocated_bytes += bytes;
  std::memset(heap_base() + offset, 0xff, bytes);
  check::heap_allocated(heap_base() + offset, bytes);
  return heap_base() + offset;
}

void heap_free(void* p) {
  if (!p) return;
  const auto found = in_heap(p) ? live.find(static_cast<size_t>(static_cast<char*>(p) - heap_base())) : live.end();
  if (found == live.end()) throw Error{"free of a pointer that was not allocated, or freed before"};
  const auto [offset, bytes] = *found;
  check::heap_freed(p, bytes);
  const size_t first = (offset + kPage - 1) / kPage * kPage, end = (offset + bytes) / kPage * kPage;
  if (end > first) madvise(heap_base() + first, end - first, MADV_DONTNEED);
  live_bytes -= bytes;
  ++counters().frees;
  live.erase(found);
  if (live.empty()) {
    madvise(heap_base(), kHeapBytes, MADV_DONTNEED);
    check::heap_emptied();
  }
}

}  // namespace simt
