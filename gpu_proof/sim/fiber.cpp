#include "fiber.h"

#include <cstdint>
#include <cstring>
#include <vector>

#include "device.h"

#if !defined(__x86_64__)
#error "the simulated device's stack switch is written for x86-64"
#endif

// System V ABI: a call preserves rbp, rbx, r12-r15 and the stack pointer, nothing else need be saved.
asm(R"(
.text
.globl simt_switch_stack
.hidden simt_switch_stack
.type simt_switch_stack,@function
simt_switch_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch_stack, .-simt_switch_stack
)");

namespace simt {
namespace {

constexpr uint64_t kCanary = 0x7a5c0ffee1e57ac4;
std::vector<char*> pool;

}  // namespace

char* take_stack() {
  if (!pool.empty()) {
    char* stack = pool.back();
    pool.pop_back();
    return stack;
  }
  char* stack = reserve_addresses(kStackBytes);
  std::memcpy(stack, &kCanary, sizeof kCanary);
  return stack;
}

void give_stack(char* stack) { pool.push_back(stack); }

void* prepare_stack(char* stack, void (*entry)()) {
  // Stacks lie at multiples of 4096; without this all threads' tops would compete for the same lines of the cache.
  const size_t colour = (reinterpret_cast<uintptr_t>(stack) / kStackBytes * 320) % 4096;
  auto** top = reinterpret_cast<void**>(stack + kStackBytes - 64 - colour);
  *--top = nullptr;  // entry's return address: at its start the stack is aligned as after a call
  *--top = reinterpret_cast<void*>(entry);
  for (int i = 0; i < 6; ++i) *--top = nullptr;
  return top;
}

bool stack_is_whole(const char* stack) { return std::memcmp(stack, &kCanary, sizeof kCanary) == 0; }

}  // namespace simt
