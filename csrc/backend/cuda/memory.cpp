#include "backend/cuda/memory.h"

#include <algorithm>
#include <cassert>
#include <cstring>
#include <utility>

#include "backend/cuda/graph.h"
#include "core/spare.h"

namespace kdtw::cuda {
namespace {

// Sizes are rounded up so that blocks of nearly the same size can take each other's place: to 1/8 of a power of two.
size_t rounded(size_t bytes) {
  size_t step = 256;
  while (step * 16 <= bytes) step *= 2;
  return std::max<size_t>((bytes + step - 1) / step * step, step);
}

constexpr size_t kBoundary = 16;  // of a staged piece

std::mutex allocator_mutex;

// Never destroyed: what it calls may be gone when the process ends.
std::shared_ptr<const ProgramAllocator>& the_allocator() {
  static auto* const allocator = new std::shared_ptr<const ProgramAllocator>;
  return *allocator;
}

std::shared_ptr<const ProgramAllocator> current_allocator() {
  const std::lock_guard lock(allocator_mutex);
  return the_allocator();
}

}  // namespace

void use_allocator(std::shared_ptr<const ProgramAllocator> allocator) {
  const std::lock_guard lock(allocator_mutex);
  the_allocator().swap(allocator);
}

Pool::Pool(const Library& library, int device) : library_(library), device_(device), allocator_(current_allocator()) {}

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
  const UseDevice here(*library_.table, device_, true);
  for (const auto& [bytes, block] : free_) library_.table->release(block.memory);
  for (const auto& [bytes, host] : free_host_) library_.table->release_host(host);
  for (void* const stream : resting_) library_.table->destroy_stream(stream);
}

UseDevice Pool::use() const { return {*library_.table, device_}; }

bool Pool::runs_loops() {
  {
    const std::lock_guard lock(mutex_);
    if (runs_loops_) return *runs_loops_;
  }
  const UseDevice here = use();
  void* const stream = begin_stream();
  const bool found = loop_runs(*library_.table, stream);
  end_stream(stream);
  const std::lock_guard lock(mutex_);
  runs_loops_ = found;
  return found;
}

void Pool::no_loops() {
  const std::lock_guard lock(mutex_);
  runs_loops_ = false;
}

void* Pool::begin_stream() {
  const UseDevice here = use();
  const std::lock_guard lock(mutex_);
  void* stream = nullptr;
  if (resting_.empty()) {
    check(*library_.table, library_.table->create_stream(&stream), "making of a stream");
  } else {
    stream = resting_.back();
    resting_.pop_back();
  }
  streams_.insert(stream);
  return stream;
}

void Pool::end_stream(void* stream) {
  const UseDevice here(*library_.table, device_, true);
  library_.table->synchronise(stream);
  const std::lock_guard lock(mutex_);
  streams_.erase(stream);
  resting_.push_back(stream);
  for (auto& [bytes, block] : free_)
    if (block.stream == stream) block.stream = nullptr;
}

void Pool::follow_program(void* stream) const {
  if (allocator_ == nullptr) return;
  const UseDevice here = use();
  check(*library_.table, library_.table->follow(stream, allocator_->current_stream(device_)), "order of two streams");
}

std::shared_ptr<void> Pool::allocate(size_t bytes, void* stream) {
  const size_t size = rounded(bytes);
  void* memory = nullptr;
  if (allocator_ != nullptr) {
    memory = allocator_->allocate(device_, std::max<size_t>(bytes, 1), stream);
    if (memory == nullptr) {
      Spare::drop_all();
      memory = allocator_->allocate(device_, std::max<size_t>(bytes, 1), stream);
    }
    if (memory == nullptr) throw refused(bytes, stream);
    return {memory, [pool = shared_from_this()](void* p) { pool->allocator_->release(p); }};
  }
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
  const UseDevice here = use();
  const int32_t first = library_.table->allocate(&memory, size);
  if (first != kKdtwOutOfMemory) check(*library_.table, first, "allocation of memory");
  if (first == kKdtwOutOfMemory) {
    Spare::drop_all();
    const std::lock_guard lock(mutex_);
    for (auto block = free_.begin(); block != free_.end();) {
      if (block->second.stream != nullptr && block->second.stream != stream) {
        ++block;
        continue;
      }
      library_.table->release(block->second.memory);
      block = free_.erase(block);
    }
    if (const int32_t status = library_.table->allocate(&memory, size); status == kKdtwOutOfMemory)
      throw refused(bytes, stream);
    else
      check(*library_.table, status, "allocation of memory");
  }
  return {memory, [pool = shared_from_this(), size, stream](void* p) { pool->give_back(p, size, stream); }};
}

std::shared_ptr<void> Pool::allocate_host(size_t bytes) {
  const KdtwCudaTable& table = *library_.table;
  const size_t size = rounded(bytes);
  void* memory = nullptr;
  {
    const std::lock_guard lock(mutex_);
    if (const auto block = free_host_.find(size); block != free_host_.end()) {
      memory = block->second;
      free_host_.erase(block);
    }
  }
  if (memory == nullptr) {
    const UseDevice here = use();
    int32_t status = table.allocate_host(&memory, size);
    if (status == kKdtwOutOfMemory) {
      Spare::drop_all();
      const std::lock_guard lock(mutex_);
      for (const auto& [unused, host] : free_host_) table.release_host(host);
      free_host_.clear();
      status = table.allocate_host(&memory, size);
    }
    if (status == kKdtwOutOfMemory)
      throw OutOfMemory(bytes, " of host memory that a device copies from; decode fewer rows together");
    check(table, status, "allocation of host memory");
  }
  return {memory, [pool = shared_from_this(), size](void* host) {
            const std::lock_guard lock(pool->mutex_);
            pool->free_host_.emplace(size, host);
          }};
}

OutOfMemory Pool::refused(size_t bytes, void* stream) const {
  const char* const what = stream == nullptr ? "; choose a format of fewer bits for the weights, or device 'cpu'"
                                             : "; lower max_new_tokens, the sources' length or the number of rows";
  return OutOfMemory(bytes, concat(" on device cuda:", device_, what));
}

void Pool::give_back(void* memory, size_t bytes, void* stream) {
  const std::lock_guard lock(mutex_);
  free_.emplace(bytes, Free{memory, streams_.count(stream) ? stream : nullptr});
}

const void* Staging::put(const void* data, size_t bytes) {
  assert(exchange_ && used_ + bytes <= exchange_->bytes());
  const size_t offset = used_;
  std::memcpy(exchange_->here<std::byte>(offset), data, bytes);
  used_ = (offset + bytes + kBoundary - 1) / kBoundary * kBoundary;
  return exchange_->there<std::byte>(offset);
}

void Staging::send() {
  if (used_ == sent_) return;
  exchange_->send(sent_, used_ - sent_);
  sent_ = used_;
}

void Staging::make_room(size_t pieces, size_t bytes) {
  bytes += pieces * kBoundary;
  if (exchange_ && used_ + bytes <= exchange_->bytes()) return;
  // The device may still read what is there.
  check(*pool_->library().table, pool_->library().table->synchronise(stream_), "wait for the device");
  reset();
  if (exchange_ && bytes <= exchange_->bytes()) return;
  constexpr size_t kLeast = size_t{1} << 20;
  exchange_.reset();
  exchange_.emplace(*pool_, stream_, std::max(kLeast, 2 * bytes));
}

}  // namespace kdtw::cuda
