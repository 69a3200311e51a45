// Stacks and the switch between them.
#pragma once

#include <cstddef>

namespace simt {

// Saves the caller's registers and stack pointer in *save, and goes on where `to` was saved or prepared.
extern "C" void simt_switch_stack(void** save, void* to);

// Stacks are pooled; the one given back last is taken first, because it is in the cache.
char* take_stack();
void give_stack(char* stack);

// A stack pointer from which simt_switch_stack enters `entry`, which must not return.
void* prepare_stack(char* stack, void (*entry)());

// False when a thread has run over the stack's end.
bool stack_is_whole(const char* stack);

}  // namespace simt
