// Runs a launch: makes its blocks and threads, and lets threads run one at a time in the schedule's order.
#include <algorithm>
#include <cstring>
#include <deque>
#include <regex>
#include <sstream>
#include <stdexcept>

#include "check.h"
#include "device.h"
#include "fiber.h"

namespace simt {

Coordinates* here = nullptr;
Launch* launch_now = nullptr;
Thread* thread_now = nullptr;

namespace {

void* scheduler_stack_pointer;
std::deque<Thread*> queue;
std::vector<char*> shared_pool;
uint64_t random_state;

uint64_t random_number() {  // xorshift64
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

// Ascending items, in the order the schedule takes them.
template <typename T>
void arrange(std::vector<T>& items) {
  if (settings().order == Order::kReverse) std::reverse(items.begin(), items.end());
  if (settings().order == Order::kRandom) {
    for (size_t i = items.size(); i > 1; --i) std::swap(items[i - 1], items[random_number() % i]);
  }
}

void exit_thread() {
  Thread& thread = *thread_now;
  thread.state = State::kExited;
  --thread.block->live;
  --launch_now->live;
  thread.warp->live &= ~(1u << thread.lane);
  warp_may_complete(*thread.warp);
  block_may_pass(*thread.block);
}

// The bottom of every fiber.
void thread_main() {
  try {
    const Work& work = *launch_now->work;
    work.run(work.call.get());
    exit_thread();
  } catch (const Error& error) {
    report(error.text);
    launch_now->aborted = true;
    thread_now->state = State::kExited;
  }
  switch_to_scheduler();
  __builtin_unreachable();
}

std::unique_ptr<Block> make_block(unsigned index) {
  const Work& work = *launch_now->work;
  const dim3 grid = work.grid, size = work.block;
  const unsigned threads = launch_now->block_threads;
  auto block = std::make_unique<Block>();
  block->index = index;
  block->live = static_cast<int>(threads);
  block->threads.resize(threads);
  block->warps.resize((threads + 31) / 32);
  if (shared_pool.empty()) shared_pool.push_back(reserve_addresses(kSharedBytes));
  block->shared = shared_pool.back();
  shared_pool.pop_back();
  check::block_begins(*block);
  if (work.translated) {
    for (const auto& [offset, bytes] : work.translated->shared) give_shared(*block, {{}, nullptr, offset, bytes});
  }
  for (unsigned i = 0; i < threads; ++i) {
    Thread& thread = block->threads[i];
    Warp& warp = block->warps[i / 32];
    thread.where = {{i % size.x, i / size.x % size.y, i / (size.x * size.y)},
                    {index % grid.x, index / grid.x % grid.y, index / (grid.x * grid.y)},
                    size,
                    grid};
    thread.block = block.get();
    thread.warp = &warp;
    thread.lane = i % 32;
    thread.index = index * threads + i;
    warp.index = index * static_cast<unsigned>(block->warps.size()) + i / 32;
    warp.live |= 1u << thread.lane;
    warp.lanes[thread.lane] = &thread;
  }
  launch_now->live += static_cast<int>(threads);
  return block;
}

void drop_blocks() {
  for (auto& block : launch_now->blocks) {
    for (Thread& thread : block->threads) {
      if (thread.stack) give_stack(thread.stack);
    }
    shared_pool.push_back(block->shared);
  }
  launch_now->blocks.clear();
}

void report_deadlock() {
  static const char* const kNames[] = {"ready", "__syncthreads", "a warp collective", ""};
  std::map<std::string, int> groups;
  for (auto& block : launch_now->blocks) {
    for (Thread& thread : block->threads) {
      if (thread.state == State::kExited)
        ++groups["exited"];
      else
        ++groups[std::string("waiting in ") + kNames[static_cast<int>(thread.state)] + " at " + describe(thread.site)];
    }
  }
  std::string text = "deadlock:";
  for (const auto& [what, count] : groups) text += " " + std::to_string(count) + " threads " + what + ";";
  report(text);
  launch_now->aborted = true;
}

void resume(Thread& thread) {
  if (!thread.stack) {
    thread.stack = take_stack();
    thread.stack_pointer = prepare_stack(thread.stack, thread_main);
  }
  thread_now = &thread;
  here = &thread.where;
  simt_switch_stack(&scheduler_stack_pointer, thread.stack_pointer);
  thread_now = nullptr;
  here = nullptr;
  if (!stack_is_whole(thread.stack)) {
    throw std::runtime_error("a simulated thread of " + launch_now->work->name + " overran its stack of " +
                             std::to_string(kStackBytes) + " bytes");
  }
  if (thread.state == State::kExited) {
    give_stack(thread.stack);
    thread.stack = nullptr;
  }
}

// Runs the blocks in launch_now->blocks, side by side, to their end.
void run_blocks() {
  std::vector<Thread*> all;
  for (auto& block : launch_now->blocks) {
    for (Thread& thread : block->threads) all.push_back(&thread);
  }
  queue.clear();
  make_ready(all.data(), all.size());
  const bool pick_any = settings().order == Order::kRandom && !settings().depth_first;
  while (!queue.empty() && !launch_now->aborted) {
    if (pick_any) std::swap(queue.front(), queue[random_number() % queue.size()]);
    Thread* next = queue.front();
    queue.pop_front();
    resume(*next);
  }
  if (!launch_now->aborted && launch_now->live) report_deadlock();
}

std::string problem_of_launch(const Work& work) {
  const auto count = [](dim3 d) { return uint64_t{d.x} * d.y * d.z; };
  const auto text = [](dim3 d) {
    return "(" + std::to_string(d.x) + ", " + std::to_string(d.y) + ", " + std::to_string(d.z) + ")";
  };
  if (!count(work.grid) || work.grid.x > 0x7fffffffu || work.grid.y > 65535 || work.grid.z > 65535) {
    return "invalid grid " + text(work.grid);
  }
  if (!count(work.block) || count(work.block) > 1024 || work.block.z > 64) return "invalid block " + text(work.block);
  return "";
}

}  // namespace

void make_ready(Thread* const* threads, size_t n) {
  static std::vector<Thread*> order;  // kept for its memory
  order.assign(threads, threads + n);
  arrange(order);
  for (Thread* thread : order) thread->state = State::kReady;
  queue.insert(settings().depth_first ? queue.begin() : queue.end(), order.begin(), order.end());
}

void switch_to_scheduler() { simt_switch_stack(&thread_now->stack_pointer, scheduler_stack_pointer); }

void abandon_thread() {
  thread_now->state = State::kExited;
  launch_now->aborted = true;
  switch_to_scheduler();
  __builtin_unreachable();
}

unsigned lane() { return thread_now->lane; }

std::string kernel_name(const std::string& spelled) {
  const size_t begin = spelled.find(" = ") + 3;
  static const std::regex kNamespaces("[\\w{}]+::");
  return std::regex_replace(spelled.substr(begin, spelled.rfind(']') - begin), kNamespaces, "");
}

std::map<std::string, TranslatedKernel>& translated_kernels() {
  static std::map<std::string, TranslatedKernel> kernels;
  return kernels;
}

const TranslatedKernel* find_translated(const std::string& name) {
  const auto& kernels = translated_kernels();
  const auto found = kernels.find(name);
  if (found == kernels.end() && !kernels.empty()) throw std::runtime_error(name + " was not translated from PTX");
  return found == kernels.end() ? nullptr : &found->second;
}

void fail(const std::string& text) { throw Error{text}; }

void trap(Site site, const char* what) { fail(std::string(what) + " at " + describe(site)); }

void report(const std::string& text) {
  if (!launch_now || launch_now->errors.size() >= 20) return;
  launch_now->errors.push_back((thread_now ? describe(*thread_now) + ": " : std::string()) + text);
}

std::string describe(Site site) {
  if (!site.file) return "?";
  const char* slash = std::strrchr(site.file, '/');
  return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

std::string describe(const Thread& thread) {
  const auto& [t, b, size, grid] = thread.where;
  std::ostringstream out;
  out << "block (" << b.x << ", " << b.y << ", " << b.z << ") thread (" << t.x << ", " << t.y << ", " << t.z << ")";
  return out.str();
}

void run_launch(const Work& work) {
  static uint32_t launches = 0;
  Launch launch;
  launch.work = &work;
  launch.id = ++launches;
  if (const std::string problem = problem_of_launch(work); !problem.empty()) throw Error{work.name + ": " + problem};
  launch.block_count = work.grid.x * work.grid.y * work.grid.z;
  launch.block_threads = work.block.x * work.block.y * work.block.z;
  launch_now = &launch;
  random_state = settings().seed * 0x9E3779B97F4A7C15ull + 88172645463325252ull + launch.id;
  ++counters().kernels;

  std::vector<unsigned> order(launch.block_count);
  for (unsigned i = 0; i < launch.block_count; ++i) order[i] = i;
  arrange(order);
  const auto together = static_cast<size_t>(std::max(settings().resident_blocks, 1));
  for (size_t first = 0; first < order.size() && !launch.aborted; first += together) {
    const size_t end = std::min(first + together, order.size());
    for (size_t i = first; i < end; ++i) launch.blocks.push_back(make_block(order[i]));
    run_blocks();
    drop_blocks();
  }
  check::launch_ends(launch);
  launch_now = nullptr;
  if (launch.errors.empty()) return;
  std::string text = "kernel " + work.name + ":";
  for (const std::string& error : launch.errors) text += "\n  " + error;
  throw Error{check::with_lines(text)};
}

}  // namespace simt
