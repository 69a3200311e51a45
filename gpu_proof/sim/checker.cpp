// Checks every load and store of a kernel: is it inside an allocation, aligned, of something that was written, and
// ordered (by CUDA's barriers, fences and atomics) after whatever conflicting access came before it, in whatever order
// the threads happen to run?
//
// Every byte of device and shared memory has a shadow: its state, and marks of its last writer and its readers in this
// launch. A mark names a moment of a thread: what other threads did before a barrier that both passed is ordered.
// Happens-before is transitive, so of ordered accesses only the later one need be kept; readers that are not ordered
// among each other are joined to one mark of wider scope (a warp, a block, a list of blocks).
#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <stdexcept>
#include <unordered_map>

#include "check.h"
#include "checker.h"
#include "device.h"

namespace simt {

void Knowledge::merge(const Knowledge& other) {
  const auto raise = [](auto& mine, const auto& theirs) {
    for (const auto& [key, value] : theirs) {
      auto& present = mine[key];
      if (present < value) present = value;
    }
  };
  raise(blocks, other.blocks);
  raise(warps, other.warps);
  raise(threads, other.threads);
}

}  // namespace simt

namespace simt::check {

const bool enabled = true;

namespace {

enum StateBit : uint8_t { kAllocated = 1, kWritten = 2 };
enum class Scope : uint8_t { kThread, kWarp, kBlock };
constexpr uint32_t kAtomic = 0x80000000u;

// Who accessed a byte and where in the code; who == 0 or of an earlier launch: nobody that matters.
struct Mark {
  uint32_t who, where;
};

// A moment of a thread, or of all threads of a warp or block between two barriers. parent: readers in other blocks.
struct Moment {
  uint32_t thread, block, warp, block_epoch, warp_epoch, fences, parent;
  Scope scope;
};

struct Shadow {
  uint8_t* state;
  Mark *writer, *reader;
};

Shadow make_shadow(size_t bytes) {
  const auto reserve = [](size_t n) {
    void* memory = mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cannot reserve addresses for the checker");
    return memory;
  };
  return {static_cast<uint8_t*>(reserve(bytes)), static_cast<Mark*>(reserve(bytes * sizeof(Mark))),
          static_cast<Mark*>(reserve(bytes * sizeof(Mark)))};
}

Shadow& heap_shadow() {
  static Shadow shadow = make_shadow(kHeapBytes);
  return shadow;
}

std::vector<Moment> moments;  // of this launch; moments[i] has the name first_moment + i
uint32_t first_moment = 1;
std::unordered_map<uint64_t, uint32_t> joins;            // (readers so far, one more) -> all of them
std::unordered_map<const void*, Knowledge> handed_over;  // through atomics of this launch, by their address
std::unordered_map<char*, Shadow> shared_shadows;
std::set<std::pair<const void*, std::string>> reported;

Moment& moment(uint32_t who) { return moments[who - first_moment]; }

uint32_t add_moment(const Moment& m) {
  moments.push_back(m);
  return first_moment + static_cast<uint32_t>(moments.size()) - 1;
}

uint32_t present() {
  Thread& t = *thread_now;
  if (t.mark) {
    const Moment& m = moment(t.mark);
    if (m.block_epoch == t.block->epoch && m.warp_epoch == t.warp->epoch && m.fences == t.fences) return t.mark;
  }
  t.mark =
      add_moment({t.index, t.block->index, t.warp->index, t.block->epoch, t.warp->epoch, t.fences, 0, Scope::kThread});
  return t.mark;
}

bool knows(const Moment& m) {
  const Knowledge* known = thread_now->known.get();
  if (!known) return false;
  const auto past = [](const auto& map, uint32_t key, uint32_t epoch) {
    const auto found = map.find(key);
    return found != map.end() && epoch < found->second;
  };
  if (past(known->blocks, m.block, m.block_epoch)) return true;
  if (m.scope == Scope::kBlock) return false;
  if (past(known->warps, m.warp, m.warp_epoch)) return true;
  return m.scope == Scope::kThread && past(known->threads, m.thread, m.fences);
}

// Did what `who` names happen before the running thread's present point?
bool ordered(uint32_t who) {
  for (; who >= first_moment; who = moment(who).parent) {
    const Moment& m = moment(who);
    const Thread& t = *thread_now;
    if (m.scope == Scope::kThread && m.thread == t.index) continue;
    if (m.block == t.block->index) {
      if (m.block_epoch < t.block->epoch) continue;
      if (m.scope != Scope::kBlock && m.warp == t.warp->index && m.warp_epoch < t.warp->epoch) continue;
    }
    if (!knows(m)) return false;
  }
  return true;
}

// The mark of `readers`, which are not ordered before the running thread, and the running thread itself.
uint32_t join(uint32_t readers, uint32_t me) {
  const Moment head = moment(readers), mine = moment(me);
  const bool same_block = head.block == mine.block && head.block_epoch == mine.block_epoch;
  const bool same_warp = same_block && head.warp == mine.warp && head.warp_epoch == mine.warp_epoch;
  if (same_block && head.scope == Scope::kBlock) return readers;
  if (same_warp && head.scope == Scope::kWarp) return readers;
  uint32_t& joined = joins[uint64_t{readers} << 32 | me];
  if (!joined) {
    Moment all = same_block ? head : mine;
    if (same_block)
      all.scope = same_warp ? Scope::kWarp : Scope::kBlock;
    else
      all.parent = readers;
    joined = add_moment(all);
  }
  return joined;
}

std::string where_text(uint32_t where) { return code_reference(image().first + (where & ~kAtomic)); }

std::string describe(Mark mark) {
  const Moment& m = moment(mark.who);
  const unsigned threads = launch_now->block_threads;
  return "block " + std::to_string(m.block) + " thread " + std::to_string(m.thread % threads) + " at " +
         where_text(mark.where);
}

// Each kind of error once for each place in the code and launch.
void report_once(const void* pc, const std::string& what, const std::string& detail = "") {
  if (reported.insert({pc, what}).second) report(what + detail + ", at " + code_reference(pc));
}

// What memory an access is to. Other: nothing that is checked byte by byte.
enum class Space { kGlobal, kShared, kOther };
Space space_of(const char* p, Shadow& shadow, size_t& offset) {
  if (in_heap(p)) {
    shadow = heap_shadow();
    offset = static_cast<size_t>(p - heap_base());
    return Space::kGlobal;
  }
  const Block& block = *thread_now->block;
  if (p >= block.shared && p < block.shared + kSharedBytes) {
    shadow = *static_cast<Shadow*>(block.shadow);
    offset = static_cast<size_t>(p - block.shared);
    return Space::kShared;
  }
  return Space::kOther;
}

void check_foreign(const char* p, bool write, const void* pc) {
  for (const auto& block : launch_now->blocks) {
    if (p >= block->shared && p < block->shared + kSharedBytes) {
      return report_once(pc, std::string(write ? "store to" : "load of") + " another block's shared memory");
    }
  }
  if (write) return report_once(pc, "store to host memory");
  const auto* call = static_cast<const char*>(launch_now->work->call.get());
  if (p >= call && p < call + launch_now->work->call_bytes) return;  // its arguments
  const auto* thread = reinterpret_cast<const char*>(thread_now);
  if (p >= thread && p < thread + sizeof(Thread)) return;  // its coordinates
  if (p >= image().first && p < image().second) return;    // constants
  report_once(pc, "load of host memory");
}

void set_state(Shadow& shadow, size_t offset, size_t bytes, uint8_t state) {
  std::memset(shadow.state + offset, state, bytes);
  std::memset(static_cast<void*>(shadow.writer + offset), 0, bytes * sizeof(Mark));
  std::memset(static_cast<void*>(shadow.reader + offset), 0, bytes * sizeof(Mark));
}

// Fresh names forever would wrap: begin again from 1, with all marks of device memory taken away.
void restart_names() {
  madvise(heap_shadow().writer, kHeapBytes * sizeof(Mark), MADV_DONTNEED);
  madvise(heap_shadow().reader, kHeapBytes * sizeof(Mark), MADV_DONTNEED);
  first_moment = 1;
}

}  // namespace

const std::pair<const char*, const char*>& image() {
  static const auto range = [] {
    std::pair<const char*, const char*> found{nullptr, nullptr};
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void* out) {
          const auto* base = reinterpret_cast<const char*>(info->dlpi_addr);
          const char* end = base;
          for (int i = 0; i < info->dlpi_phnum; ++i) {
            if (info->dlpi_phdr[i].p_type != PT_LOAD) continue;
            end = std::max(end, base + info->dlpi_phdr[i].p_vaddr + info->dlpi_phdr[i].p_memsz);
          }
          const auto* here = reinterpret_cast<const char*>(&image);
          if (here < base || here >= end) return 0;
          *static_cast<std::pair<const char*, const char*>*>(out) = {base, end};
          return 1;
        },
        &found);
    return found;
  }();
  return range;
}

void launch_begins(Launch&) { heap_shadow(); }

void launch_ends(Launch& launch) {
  finish_traffic(launch);
  first_moment += static_cast<uint32_t>(moments.size());
  moments.clear();
  joins.clear();
  handed_over.clear();
  reported.clear();
  if (first_moment > (1u << 31)) restart_names();
}

void block_begins(Block& block) {
  auto& shadow = shared_shadows[block.shared];
  if (!shadow.state)
    shadow = make_shadow(kSharedBytes);
  else
    madvise(shadow.state, kSharedBytes, MADV_DONTNEED);
  block.shadow = &shadow;
}

void shared_allocated(Block& block, size_t offset, size_t bytes) {
  set_state(*static_cast<Shadow*>(block.shadow), offset, bytes, kAllocated);
}
void heap_allocated(void* p, size_t bytes) {
  set_state(heap_shadow(), static_cast<size_t>(static_cast<char*>(p) - heap_base()), bytes, kAllocated);
}
void heap_freed(void* p, size_t bytes) {
  std::memset(heap_shadow().state + (static_cast<char*>(p) - heap_base()), 0, bytes);
}
// Addresses are never used again: what is known of them may go.
void heap_emptied() {
  madvise(heap_shadow().state, kHeapBytes, MADV_DONTNEED);
  madvise(heap_shadow().writer, kHeapBytes * sizeof(Mark), MADV_DONTNEED);
  madvise(heap_shadow().reader, kHeapBytes * sizeof(Mark), MADV_DONTNEED);
}
void written_by_runtime(const void* p, size_t bytes) {
  std::memset(heap_shadow().state + (static_cast<const char*>(p) - heap_base()), kAllocated | kWritten, bytes);
}

void fence(Thread& thread) {
  ++thread.fences;
  auto published = std::make_shared<Knowledge>();
  if (thread.known) published->merge(*thread.known);
  if (thread.acquired) {
    published->merge(*thread.acquired);
    thread.known = std::make_shared<Knowledge>(*published);
    thread.acquired.reset();
  }
  published->blocks[thread.block->index] = thread.block->epoch;
  published->warps[thread.warp->index] = thread.warp->epoch;
  published->threads[thread.index] = thread.fences;
  thread.published = std::move(published);
}

void met(Thread* const* threads, size_t n) {
  std::shared_ptr<const Knowledge> common;
  bool differ = false;
  for (size_t i = 0; i < n; ++i) {
    if (threads[i]->known == common) continue;
    differ |= common != nullptr || i > 0;
    if (threads[i]->known) common = threads[i]->known;
  }
  if (!common || !differ) return;
  auto all = std::make_shared<Knowledge>();
  for (size_t i = 0; i < n; ++i) {
    if (threads[i]->known && (i == 0 || threads[i]->known != threads[i - 1]->known)) all->merge(*threads[i]->known);
  }
  for (size_t i = 0; i < n; ++i) threads[i]->known = all;
}

void access(const void* address, size_t bytes, bool write, bool atomic, const void* pc) {
  Thread* const thread = thread_now;
  if (!thread) return;
  const auto* p = static_cast<const char*>(address);
  if (p >= thread->stack && p < thread->stack + kStackBytes) return;
  Shadow shadow;
  size_t offset;
  const Space space = space_of(p, shadow, offset);
  if (space == Space::kOther) return check_foreign(p, write, pc);
  const char* const kind = space == Space::kGlobal ? "global" : "shared";
  const char* const verb = atomic ? "atomic" : write ? "store" : "load";
  if (bytes <= 16 && offset % bytes) {
    report_once(pc, "misaligned " + std::to_string(bytes) + "-byte " + verb);
  }
  if (settings().traffic && !atomic) count_request(offset, bytes, space == Space::kShared, write, pc);

  const uint32_t me = present();
  const auto where = static_cast<uint32_t>(static_cast<const char*>(pc) - image().first) | (atomic ? kAtomic : 0);
  uint32_t last_reader = 0, joined = 0;  // the last join that was looked up
  for (size_t i = offset; i < offset + bytes; ++i) {
    const uint8_t state = shadow.state[i];
    if (!(state & kAllocated)) {
      report_once(pc, std::string(kind) + " " + verb + " out of bounds");
      abandon_thread();
    }
    if ((!write || atomic) && !(state & kWritten)) {
      report_once(pc, std::string(verb) + " of uninitialised " + kind + " memory");
    }
    const Mark writer = shadow.writer[i];
    if (writer.who >= first_moment && writer.who != me && !(atomic && (writer.where & kAtomic)) &&
        !ordered(writer.who)) {
      return report_once(pc,
                         std::string("race on ") + kind + " memory: this " + verb + " is not ordered after the " +
                             (writer.where & kAtomic ? "atomic" : "store"),
                         " of " + describe(writer));
    }
    Mark& reader = shadow.reader[i];
    if (write) {
      if (reader.who >= first_moment && reader.who != me && !(atomic && (reader.where & kAtomic)) &&
          !ordered(reader.who)) {
        return report_once(pc,
                           std::string("race on ") + kind + " memory: this " + verb + " is not ordered after the load",
                           " of " + describe(reader));
      }
      shadow.writer[i] = {me, where};
      shadow.state[i] = kAllocated | kWritten;
    } else if (reader.who != me) {
      if (reader.who < first_moment) {
        reader = {me, where};
      } else {
        if (reader.who != last_reader) {
          last_reader = reader.who;
          joined = ordered(reader.who) ? me : join(reader.who, me);
        }
        reader = {joined, where};
      }
    }
  }
  if (!atomic) return;
  if (const auto found = handed_over.find(address); found != handed_over.end()) {
    auto acquired = std::make_shared<Knowledge>(found->second);
    if (thread->acquired) acquired->merge(*thread->acquired);
    thread->acquired = std::move(acquired);
  }
  if (write && thread->published) handed_over[address].merge(*thread->published);
}

void read_only_load(const void* address, size_t bytes, const void* pc) {
  if (!thread_now || !in_heap(address)) return;
  const auto offset = static_cast<size_t>(static_cast<const char*>(address) - heap_base());
  for (size_t i = offset; i < offset + bytes; ++i) {
    const Mark writer = heap_shadow().writer[i];
    if (writer.who < first_moment) continue;
    return report_once(pc, "load through the read-only cache of what this launch stored", " by " + describe(writer));
  }
}

}  // namespace simt::check
