// What the checker's parts share.
#pragma once

#include <cstddef>
#include <string>

namespace simt {
struct Launch;
}

// Where this library lies in memory: the linker's names for its first byte and what follows its last.
extern "C" __attribute__((visibility("hidden"))) const char __ehdr_start, _end;

namespace simt::check {

// A code address in a message; with_lines makes file:line of it. Finding lines needs more stack than fibers have.
std::string code_reference(const void* pc);

// One thread's load or store, for the counts of its launch.
void count_request(size_t offset, size_t bytes, bool shared, bool write, const void* pc);
void finish_traffic(const Launch& launch);

}  // namespace simt::check
