// Operations on the CPU: packed weights, blocked key caches, one thread pool.
#pragma once

#include <memory>

#include "backend/cpu/kernels.h"
#include "backend/operations.h"

namespace kdtw::cpu {

// With kernels that outlive them.
std::unique_ptr<Operations> make_operations(const Kernels& kernels, int threads);

}  // namespace kdtw::cpu
