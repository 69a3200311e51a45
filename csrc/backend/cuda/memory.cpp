#include "backend/cuda/memory.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "core/error.h"

namespace kdtw::cuda {
namespace {

// Sizes are rounded up so that blocks of nearly the same size can take each other's place: to 1/8 of a power of two.
size_t rounded(size_t bytes) {
  size_t step = 256;
  while (step * 16 <= bytes) step *= 2;
  return std::max<size_t>((bytes + step - 1) / step * step, step);
}

constexpr size_t kBoundary = 256;  // of a staged piece

}  // namespace

std::shared_ptr<Pool> Pool::of(const Library& library, int device) {
  static std::mutex mutex;
  static std::map<std::pair<const KdtwCudaTable*, int>, std::weak_ptr<Pool>> pools;
  const std::lock_guard lock(mutex);
  std::weak_ptr<Pool>& known = pools[{library.table, device}];
  if (auto pool = known.lock()) return pool;
  std::shared_ptr<Pool> pool(new Pool(library, device));
  known = pool;
  return pool;
}

Pool::~Pool() {
  library_.table->use_device(device_);
  for (const auto& [bytes, block] : free_) library_.table->release(block.memory);
}

void Pool::use() const { check(*library_.table, library_.table->use_device(device_), "choice of the device"); }

void* Pool::create_stream() {
  use();
  void* stream = nullptr;
  check(*library_.table, library_.table->create_stream(&stream), "making of a stream");
  const std::lock_guard lock(mutex_);
  streams_.insert(stream);
  return stream;
}

void Pool::end_stream(void* stream) {
  library_.table->use_device(device_);
  library_.table->synchronise(stream);
  library_.table->destroy_stream(stream);
  const std::lock_guard lock(mutex_);
  streams_.erase(stream);
  for (auto& [bytes, block] : free_)
    if (block.stream == stream) block.stream = nullptr;
}

std::shared_ptr<void> Pool::allocate(size_t bytes, void* stream) {
  const size_t size = rounded(bytes);
  void* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    const auto end = free_.upper_bound(size + size / 4);
    for (auto block = free_.lower_bound(size); block != end; ++block) {
      if (block->second.stream != nullptr && block->second.stream != stream) continue;
      memory = block->second.memory;
      const size_t whole = block->first;
      free_.erase(block);
      return {memory, [pool = shared_from_this(), whole, stream](void* p) { pool->give_back(p, whole, stream); }};
    }
  }
  use();
  if (library_.table->allocate(&memory, size) != 0) {
    const std::lock_guard lock(mutex_);
    for (auto block = free_.begin(); block != free_.end();) {
      if (block->second.stream != nullptr && block->second.stream != stream) {
        ++block;
        continue;
      }
      library_.table->release(block->second.memory);
      block = free_.erase(block);
    }
    if (library_.table->allocate(&memory, size) != 0) throw OutOfMemory(bytes);
  }
  return {memory, [pool = shared_from_this(), size, stream](void* p) { pool->give_back(p, size, stream); }};
}

void Pool::give_back(void* memory, size_t bytes, void* stream) {
  const std::lock_guard lock(mutex_);
  free_.emplace(bytes, Free{memory, streams_.count(stream) ? stream : nullptr});
}

Staging::~Staging() {
  if (host_ != nullptr) pool_->library().table->release_host(host_);
}

const void* Staging::put(const void* data, size_t bytes) {
  // What a pass asks for again was put shortly before.
  constexpr size_t kLookBack = 8;
  const size_t oldest = pieces_.size() > kLookBack ? pieces_.size() - kLookBack : 0;
  for (size_t i = pieces_.size(); i > oldest; --i) {
    const Piece& piece = pieces_[i - 1];
    if (piece.bytes == bytes && std::memcmp(host_ + piece.offset, data, bytes) == 0)
      return static_cast<std::byte*>(device_.get()) + piece.offset;
  }
  assert(used_ + bytes <= capacity_);
  const size_t offset = used_;
  std::memcpy(host_ + offset, data, bytes);
  const KdtwCudaTable& table = *pool_->library().table;
  std::byte* const to = static_cast<std::byte*>(device_.get()) + offset;
  check(table, table.copy_in(to, host_ + offset, bytes, stream_), "copy to the device");
  pieces_.push_back({offset, bytes});
  used_ = (offset + bytes + kBoundary - 1) / kBoundary * kBoundary;
  return to;
}

void Staging::make_room(size_t pieces, size_t bytes) {
  bytes += pieces * kBoundary;
  if (used_ + bytes <= capacity_) return;
  // Nobody must read any more what is there.
  const KdtwCudaTable& table = *pool_->library().table;
  check(table, table.synchronise(stream_), "wait for the device");
  reset();
  if (bytes <= capacity_) return;
  constexpr size_t kLeast = size_t{1} << 20;
  const size_t capacity = std::max(kLeast, 2 * bytes);
  if (host_ != nullptr) table.release_host(std::exchange(host_, nullptr));
  capacity_ = 0;
  void* host = nullptr;
  if (table.allocate_host(&host, capacity) != 0) throw OutOfMemory(capacity);
  host_ = static_cast<std::byte*>(host);
  device_ = pool_->allocate(capacity, stream_);
  capacity_ = capacity;
}

}  // namespace kdtw::cuda
