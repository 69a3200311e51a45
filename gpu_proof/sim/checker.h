// What the checker's parts share.
#pragma once

#include <cstddef>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace simt {
struct Launch;
}

namespace simt::check {

// Where this library lies in memory: its first byte and the one after its last.
const std::pair<const char*, const char*>& image();

// A code address in a message; with_lines makes file:line of it. Finding lines needs more stack than fibers have.
std::string code_reference(const void* pc);
// file:line of each, those that were inlined into others as "inner < outer".
std::map<const void*, std::string> lines_of(const std::vector<const void*>& addresses);

// One thread's load or store, for the counts of its launch.
void count_request(size_t offset, size_t bytes, bool shared, bool write, const void* pc);
void finish_traffic(const Launch& launch);

}  // namespace simt::check
