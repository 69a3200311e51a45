// Checks every load and store of a kernel: is it inside an allocation, aligned, of something that was written, and
// ordered (by CUDA's barriers) after whatever conflicting access came before it, in whatever order the threads happen
// to run? Nothing orders blocks of a launch: these kernels hand nothing from one to another.
//
// Every byte of device and shared memory has a shadow: its state, and marks of its last writer and its readers in this
// launch. A mark names a moment of a thread: what other threads did before a barrier that both passed is ordered.
// Happens-before is transitive, so of ordered accesses only the later one need be kept; readers that are not ordered
// among each other are joined to one mark of wider scope (a warp, a block, several blocks).
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <set>
#include <unordered_map>

#include "check.h"
#include "checker.h"
#include "device.h"

namespace simt::check {

const bool enabled = true;

namespace {

enum StateBit : uint8_t { kAllocated = 1, kWritten = 2 };
enum class Scope : uint8_t { kThread, kWarp, kBlock, kGrid };
constexpr uint32_t kAtomic = 0x80000000u;
const char* const kImage = &__ehdr_start;

// Who accessed a byte and where in the code; who == 0 or of an earlier launch: nobody that matters.
struct Mark {
  uint32_t who, where;
};

// A moment of a thread, or of all threads of a warp or block between two barriers.
struct Moment {
  uint32_t thread, block, warp, block_epoch, warp_epoch;
  Scope scope;
};

struct Shadow {
  uint8_t* state;
  Mark *writer, *reader;
};

Shadow make_shadow(size_t bytes) {
  return {reinterpret_cast<uint8_t*>(reserve_addresses(bytes)),
          reinterpret_cast<Mark*>(reserve_addresses(bytes * sizeof(Mark))),
          reinterpret_cast<Mark*>(reserve_addresses(bytes * sizeof(Mark)))};
}

Shadow& heap_shadow() {
  static Shadow shadow = make_shadow(kHeapBytes);
  return shadow;
}

std::vector<Moment> moments;  // of this launch; moments[i] has the name first_moment + i
uint32_t first_moment = 1;
std::unordered_map<uint64_t, uint32_t> joins;  // (readers so far, one more) -> all of them
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
    if (m.block_epoch == t.block->epoch && m.warp_epoch == t.warp->epoch) return t.mark;
  }
  return t.mark = add_moment({t.index, t.block->index, t.warp->index, t.block->epoch, t.warp->epoch, Scope::kThread});
}

// Did what `who` names happen before the running thread's present point?
bool ordered(uint32_t who) {
  if (who < first_moment) return true;
  const Moment& m = moment(who);
  const Thread& t = *thread_now;
  if (m.scope == Scope::kGrid) return false;
  if (m.scope == Scope::kThread && m.thread == t.index) return true;
  if (m.block != t.block->index) return false;
  if (m.block_epoch < t.block->epoch) return true;
  return m.scope != Scope::kBlock && m.warp == t.warp->index && m.warp_epoch < t.warp->epoch;
}

// The mark of `readers`, which are not ordered before the running thread, and the running thread itself.
uint32_t join(uint32_t readers, uint32_t me) {
  const Moment head = moment(readers), mine = moment(me);
  const bool same_block = head.block == mine.block, same_warp = head.warp == mine.warp;
  const Scope needed = same_warp ? Scope::kWarp : same_block ? Scope::kBlock : Scope::kGrid;
  if (head.scope >= needed) return readers;
  uint32_t& joined = joins[uint64_t{readers} << 32 | me];
  if (!joined) {
    Moment all = head;
    all.scope = needed;
    joined = add_moment(all);
  }
  return joined;
}

std::string describe(Mark mark) {
  const Moment& m = moment(mark.who);
  const unsigned threads = launch_now->block_threads;
  return "block " + std::to_string(m.block) + " thread " + std::to_string(m.thread % threads) + " at " +
         code_reference(kImage + (mark.where & ~kAtomic));
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
  if (write) return report_once(pc, "store to host memory");
  const auto* call = static_cast<const char*>(launch_now->work->call.get());
  if (p >= call && p < call + launch_now->work->call_bytes) return;  // its arguments
  const auto* thread = reinterpret_cast<const char*>(thread_now);
  if (p >= thread && p < thread + sizeof(Thread)) return;  // its coordinates
  if (p >= kImage && p < &_end) return;                    // constants
  report_once(pc, "load of host memory");
}

void set_state(Shadow& shadow, size_t offset, size_t bytes, uint8_t state) {
  std::memset(shadow.state + offset, state, bytes);
  std::memset(static_cast<void*>(shadow.writer + offset), 0, bytes * sizeof(Mark));
  std::memset(static_cast<void*>(shadow.reader + offset), 0, bytes * sizeof(Mark));
}

void forget_accesses() {
  for (Mark* marks : {heap_shadow().writer, heap_shadow().reader}) {
    madvise(marks, kHeapBytes * sizeof(Mark), MADV_DONTNEED);
  }
}

}  // namespace

void launch_ends(Launch& launch) {
  finish_traffic(launch);
  first_moment += static_cast<uint32_t>(moments.size());
  moments.clear();
  joins.clear();
  reported.clear();
  if (first_moment <= (1u << 31)) return;
  forget_accesses();  // fresh names forever would wrap
  first_moment = 1;
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
  forget_accesses();
}
void written_by_runtime(const void* p, size_t bytes) {
  std::memset(heap_shadow().state + (static_cast<const char*>(p) - heap_base()), kAllocated | kWritten, bytes);
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
  if (bytes <= 16 && offset % (bytes & -bytes)) {  // a struct of 12 bytes is copied by words of 4
    report_once(pc, "misaligned " + std::to_string(bytes) + "-byte " + verb);
  }
  if (settings().traffic && !atomic) count_request(offset, bytes, space == Space::kShared, write, pc);

  const uint32_t me = present();
  const auto where = static_cast<uint32_t>(static_cast<const char*>(pc) - kImage) | (atomic ? kAtomic : 0);
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
}

}  // namespace simt::check
