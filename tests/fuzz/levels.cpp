// Clang compiles no file of kernels for a wider machine than the rest of the program (csrc has a pragma of GCC for
// that): what is fuzzed computes with the generic ones, whose loops and sizes are the same.
#include "backend/cpu/kernels.h"

namespace kdtw::cpu {

const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx2_vnni_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
const Kernels* avx512_vnni_kernels() { return nullptr; }
const Kernels* amx_kernels() { return nullptr; }

}  // namespace kdtw::cpu
