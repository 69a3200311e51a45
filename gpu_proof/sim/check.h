// What the device tells the checker. checker.cpp answers in checked libraries; check_off.cpp, which does nothing, in
// the others. `pc`: the address in the kernel's code, from which file and line are found.
#pragma once

#include <cstddef>
#include <string>

namespace simt {
struct Block;
struct Launch;
}  // namespace simt

namespace simt::check {

extern const bool enabled;

void launch_ends(Launch& launch);
void block_begins(Block& block);
void shared_allocated(Block& block, size_t offset, size_t bytes);
void heap_allocated(void* p, size_t bytes);
void heap_freed(void* p, size_t bytes);
void heap_emptied();                                   // nothing is allocated any more
void written_by_runtime(const void* p, size_t bytes);  // copied or filled
void access(const void* p, size_t bytes, bool write, bool atomic, const void* pc);
std::string with_lines(const std::string& text);  // code addresses in a message become file:line
std::string& traffic_report();                    // JSON lines, one a launch

}  // namespace simt::check
