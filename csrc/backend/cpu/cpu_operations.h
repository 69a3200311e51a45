// Operations on the CPU: packed weights, blocked key caches, one thread pool.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend/cpu/kernels.h"
#include "backend/operations.h"

namespace kdtw::cpu {

// Names of the instruction sets that this processor and this build have, best first.
std::vector<std::string> simd_levels();
// Makes every decode from now on use `level`; throws std::invalid_argument when it is not available.
void set_simd(const std::string& level);
const Kernels& kernels();
// With kernels that outlive them.
std::unique_ptr<Operations> make_operations(const Kernels& kernels, int threads);

}  // namespace kdtw::cpu
