// Which of the instruction sets' kernels are used: by default the best that this processor has.
#pragma once

#include <string>
#include <vector>

#include "backend/cpu/kernels.h"

namespace kdtw::cpu {

// Names of the instruction sets that this processor and this build have, best first.
std::vector<std::string> simd_levels();
// Makes every decode from now on use `level`; throws std::invalid_argument when it is not available.
void set_simd(const std::string& level);
const Kernels& kernels();

}  // namespace kdtw::cpu
